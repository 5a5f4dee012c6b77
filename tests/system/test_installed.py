# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed away from the checkout, is all that a node needs.

Built and installed by the very commands of docs/operations.md, below a directory of this
test's. Left out are what needs a network: Debian's packages and the libraries, which are
those of the tests' own environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.command import new_lab
from tests.patience import PATIENCE
from tests.wheel import ROOT, copy

PAGE = (ROOT / "docs" / "operations.md").read_text()
LIBRARIES = "pip install --require-hashes --no-deps --requirement requirements.lock"
ELSEWHERE = ("script/bootstrap ", "apt-get ", "/opt/geneve-ebpf/bin/python -m " + LIBRARIES)


def commands() -> list[str]:
    """The lines of the chapter's shell blocks, as root types them."""
    (chapter,) = re.findall(r"^## Install\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("sudo ") for line in "".join(blocks).splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The directory that stands for / where something is installed to."""
    place = tmp_path_factory.mktemp("installed")
    checkout = copy(place)
    bin_ = place / "usr/local/bin"
    bin_.mkdir(parents=True)
    environment = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"}
    left_out = []
    for line in commands():
        if line.startswith(ELSEWHERE):
            left_out.append(line)
            continue
        line = re.sub(r"(?<=[ =])/(?=opt/|usr/local/|etc/)", f"{place}/", " " + line).strip()
        line = re.sub(r"^\.venv/bin/python ", f"{sys.executable} ", line)
        done = subprocess.run(
            ["sh", "-c", line], cwd=checkout, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if " -m venv " in line:
            (packages,) = (place / "opt/geneve-ebpf/lib").glob("python3.*/site-packages")
            (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert len(left_out) == len(ELSEWHERE)
    return place


def python(place: Path, *words: str) -> str:
    """Run the installed Python where no checkout is; its stdout."""
    return subprocess.run(
        [str(place / "opt/geneve-ebpf/bin/python"), *words], cwd="/", check=True,
        capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip


def test_the_installed_package_is_the_one_that_runs(place):
    """With its C sources beside it, and the command that pip has made."""
    where = "from geneve_ebpf import abi; print(abi.__file__, abi.bpf_directory(), sep='\\n')"

    module, sources = python(place, "-c", where).splitlines()

    assert Path(module).parent.is_relative_to(place / "opt")
    assert sources == f"{Path(module).parent}/_bpf"
    command = place / "usr/local/bin/geneve-ebpf"
    told = subprocess.run([command, "--version"], cwd="/", check=True, capture_output=True)
    assert re.fullmatch(rb"geneve-ebpf \S+\n", told.stdout)


def test_the_files_are_where_the_unit_names_them(place):
    """The command, its configuration, and the manual."""
    unit = (place / "etc/systemd/system/geneve-ebpf.service").read_text()

    command, config = re.findall(r"^ExecStart=(\S+) .* (\S+)$", unit, re.MULTILINE)[0]
    assert os.access(f"{place}{command}", os.X_OK)
    assert Path(f"{place}{config}").is_file()
    (manual,) = re.findall(r"^Documentation=man:(\S+)\(1\)$", unit, re.MULTILINE)
    assert (place / f"usr/local/share/man/man1/{manual}.1").is_file()


def test_a_node_runs_on_it(place):
    """An agent, its slot process and its programs, all out of the wheel."""
    python = str(place / "opt/geneve-ebpf/bin/python")
    with new_lab("wheel") as lab:
        lab.patience = 60 * PATIENCE
        lab.make_nodes(1, slots=1, metrics=False)
        (node,) = lab.nodes
        # The lab's own Python, which would come next, is taken off.
        lab.start_agent(node, "env", "-C", "/", "sh", "-c", 'shift && exec "$0" "$@"', python)
        lab.wait_ready(node)
        run = Path(f"/proc/{lab.agents[node.name]}/cmdline").read_bytes().split(b"\0")
        assert run[0] == os.fsencode(python)

        with node.client() as client:
            client.request("PUT", "/v1/vpcs/blue", {"vni": 7, "prefixes": ["10.0.0.0/16"]})
            _, answer = client.request("PUT", "/v1/sandboxes/web", {"vpc": "blue",
                                       "address": "10.0.0.9"})  # fmt: skip
        assert answer["state"] == "attached"
