# SPDX-License-Identifier: Apache-2.0
"""What an installed geneve_ebpf holds: all packages, and the C sources."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.wheel import build

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this checkout."""
    return zipfile.ZipFile(build(tmp_path_factory.mktemp("wheel")))


def test_every_package_is_listed():
    """pyproject.toml names packages one by one; a new directory must be added there."""
    on_disk = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in (ROOT / "geneve_ebpf").rglob("*.py")
    }
    sources = {
        "geneve_ebpf._" + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in (ROOT / "bpf").rglob("*.[ch]")
    }

    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk | sources


def test_the_wheel_holds_every_source_file(wheel):
    """Python as it lies in the checkout, bpf/ inside the package."""
    python = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "geneve_ebpf").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    c = {
        "geneve_ebpf/_bpf/" + path.relative_to(ROOT / "bpf").as_posix()
        for path in (ROOT / "bpf").rglob("*.[ch]")
    }

    held = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert held == python | c


def test_the_wheel_does_not_ask_pypi_for_bcc(wheel):
    """PyPI's bcc is another thing: ours is Debian's python3-bpfcc."""
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))

    required = re.findall(r"^Requires-Dist: ([\w-]+)", wheel.read(metadata).decode(), re.MULTILINE)

    assert "pyroute2" in required
    assert "bcc" not in required


def locked(name: str) -> dict[str, str]:
    """Package -> version in a lock, which holds pins, hashes and a comment, no more."""
    text = (ROOT / name).read_text()
    pin = re.compile(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}\n", re.MULTILINE)
    rest = pin.sub("", text)
    assert all(line.startswith("#") for line in rest.splitlines()), rest
    return dict(pin.findall(text))


def test_the_locks_hold_what_the_project_asks_for():
    """Every dependency is pinned, and both locks pin the same version."""
    wanted_to_run = PROJECT["project"]["dependencies"]
    wanted_to_test = PROJECT["project"]["optional-dependencies"]["dev"]

    run = locked("requirements.lock")
    dev = locked("requirements-dev.lock")

    assert {re.split("[<>=]", wish)[0] for wish in wanted_to_run} <= set(run)
    assert {re.split("[<>=]", wish)[0] for wish in wanted_to_test} <= set(dev)
    assert run.items() <= dev.items()


def test_every_dependency_has_its_reason():
    """docs/dependencies.md has a row for each Debian package and each library."""
    bootstrap = (ROOT / "script" / "bootstrap").read_text()
    lists = re.findall(r"^(?:run|test)_packages=\(([^)]*)\)$", bootstrap, re.MULTILINE)
    debian = {package for packages in lists for package in packages.split()}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wishes = [*PROJECT["project"]["dependencies"], *(wish for extra in extras for wish in extra)]
    pypi = {re.split("[<>=]", wish)[0] for wish in wishes}

    rows = re.findall(r"^\|(.+?)\|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}

    assert len(lists) == 2
    assert debian | pypi <= explained
