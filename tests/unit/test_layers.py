# SPDX-License-Identifier: Apache-2.0
"""Imports run down the layers, and each outside library has one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "geneve_ebpf"

# Bottom first. A part imports from parts below it, from itself, and from nothing
# beside it or above it.
LAYERS = (
    ("errors",),
    ("model", "abi"),
    ("host",),
    ("loader",),
    ("dataplane",),
    ("control",),
    ("agent",),
    ("exporter", "cli"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# The other end of the agent's socket: it knows no layer, and only those who call
# the agent know it.
CLIENT_KNOWS = {"errors"}
CLIENT_IS_KNOWN_TO = {"cli", "exporter"}

# Library -> the only places that may import it, lazily or not.
HOMES = {
    "pyroute2": ("geneve_ebpf/host/", "bench/", "lab/", "tests/"),
    "bcc": ("geneve_ebpf/loader/",),
    "scapy": ("bench/", "tests/"),
    "typer": ("geneve_ebpf/cli/",),
    "prometheus_client": ("geneve_ebpf/exporter/", "tests/"),
}


def imports(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of whatever is imported anywhere in `source`.

    `from a import b` yields a.b: b may be a module. Relative imports and
    `import_module("a.b")` with a literal are resolved.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=origin, names=names, level=dots):
                base = package[: len(package) - dots + 1] if dots else []
                base = [*base, *(origin.split(".") if origin else [])]
                yield from ((node.lineno, ".".join([*base, name.name])) for name in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def part_of(module: str) -> str:
    """The layer's part a module of ours is in; "" for the package itself."""
    rest = module.removeprefix(PACKAGE).lstrip(".").split(".")[0]
    return "cli" if rest == "__main__" else rest


def upward(part: str, imported: str) -> str | None:
    """Why `part` may not import `imported`, a module of ours; None when it may."""
    other = part_of(imported)
    # The package itself holds the version and imports nothing.
    if other in ("", part) or (other not in LEVEL and other != "client"):
        return None
    if part == "":
        return "the package itself imports nothing of ours"
    if part == "client":
        return None if other in CLIENT_KNOWS else "client knows errors only"
    if other == "client":
        return None if part in CLIENT_IS_KNOWN_TO else "client is for those who call the agent"
    return None if LEVEL[other] < LEVEL[part] else f"{other} is not below {part}"


def faults(path: str, source: str) -> list[str]:
    """What is wrong with the imports of one file, given by its path from the root."""
    is_package = path.endswith("/__init__.py")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = []
    for line, name in imports(source, module, is_package=is_package):
        top = name.split(".")[0]
        why = None
        if top in HOMES and not path.startswith(HOMES[top]):
            why = f"{top} belongs in {' '.join(HOMES[top])}"
        elif top == PACKAGE and module.split(".")[0] == PACKAGE:
            why = upward(part_of(module), name)
        if why:
            found.append(f"{path}:{line}: imports {name}: {why}")
    return found


def sources() -> list[Path]:
    """Every Python file of the package and of what stands around it."""
    named = [p for d in (PACKAGE, "bench", "lab", "tests") for p in (ROOT / d).rglob("*.py")]
    scripts = [
        path
        for directory in ("lab", "script")
        for path in (ROOT / directory).glob("*")
        if path.is_file() and not path.suffix and "python" in path.read_text().partition("\n")[0]
    ]
    return sorted(named + scripts)


def test_imports_run_down_the_layers():
    """No file imports from beside or above its layer, nor a library out of its home."""
    found = [
        fault
        for path in sources()
        for fault in faults(path.relative_to(ROOT).as_posix(), path.read_text())
    ]

    assert found == []


def test_every_part_of_the_package_has_a_layer():
    """A new directory or module at the top is given its place here first."""
    parts = {
        path.stem
        for path in (ROOT / PACKAGE).iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }

    assert parts - set(LEVEL) <= {"__init__", "__main__", "client"}


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("host/veth.py", "from geneve_ebpf.agent import slot_process", "agent is not below host"),
        ("host/veth.py", "def f():\n    import geneve_ebpf.loader.pins", "loader is not below"),
        ("host/veth.py", "from .. import dataplane", "dataplane is not below host"),
        ("host/__init__.py", "from ..dataplane import plane", "dataplane is not below host"),
        ("model.py", "from geneve_ebpf.abi import Key", "abi is not below model"),
        ("cli/app.py", "from geneve_ebpf.exporter import server", "exporter is not below cli"),
        ("client.py", "from geneve_ebpf.model import Vpc", "client knows errors only"),
        ("agent/main.py", "from geneve_ebpf import client", "for those who call the agent"),
        ("__init__.py", "from geneve_ebpf.model import Vpc", "the package itself"),
        ("agent/main.py", "from pyroute2 import IPRoute", "pyroute2 belongs in"),
        ("agent/main.py", "importlib.import_module('bcc')", "bcc belongs in"),
        ("exporter/server.py", "import typer.main as t", "typer belongs in"),
        ("cli/app.py", "import prometheus_client", "prometheus_client belongs in"),
        ("dataplane/plane.py", "from scapy.all import IP", "scapy belongs in"),
    ],
)
def test_a_forbidden_import_is_found(path, source, fault):
    """The check sees every form of import, lazy and relative ones too."""
    (found,) = faults(f"{PACKAGE}/{path}", source)

    assert fault in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("host/veth.py", "from geneve_ebpf.errors import Code\nfrom .links import up"),
        ("host/veth.py", "import pyroute2"),
        ("agent/main.py", "from geneve_ebpf import __version__\nfrom geneve_ebpf.model import Vpc"),
        ("cli/app.py", "from geneve_ebpf.client import AgentClient\nimport typer"),
        ("client.py", "from geneve_ebpf.errors import GeneveError"),
        ("__main__.py", "from geneve_ebpf.cli import main"),
    ],
)
def test_an_allowed_import_is_left_alone(path, source):
    """Downwards, within a part, and a library at home."""
    assert faults(f"{PACKAGE}/{path}", source) == []
