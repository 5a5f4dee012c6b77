# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed away from the checkout, is all that a node needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import new_lab
from tests.patience import PATIENCE
from tests.wheel import build


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which Python finds the installed package before the checkout."""
    scratch = tmp_path_factory.mktemp("installed")
    place = scratch / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--disable-pip-version-check", "--target", str(place), str(build(scratch))],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return {**os.environ, "PYTHONPATH": str(place)}


def python(environment: dict[str, str], *words: str) -> str:
    """Run Python where no checkout is; its stdout."""
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd="/", check=True, capture_output=True,
        text=True, timeout=60,
    ).stdout  # fmt: skip


def test_the_installed_package_is_the_one_that_runs(installed):
    """With its C sources beside it, and the command that pip has made."""
    place = Path(installed["PYTHONPATH"])
    where = "from geneve_ebpf import abi; print(abi.__file__, abi.bpf_directory(), sep='\\n')"

    module, sources = python(installed, "-c", where).splitlines()

    assert module == f"{place}/geneve_ebpf/abi.py"
    assert sources == f"{place}/geneve_ebpf/_bpf"
    assert re.fullmatch(r"geneve-ebpf \S+\n", python(installed, "-m", "geneve_ebpf", "--version"))
    assert os.access(place / "bin" / "geneve-ebpf", os.X_OK)


def test_a_node_runs_on_it(installed):
    """An agent, its slot process and its programs, all out of the wheel."""
    with new_lab("wheel") as lab:
        lab.patience = 60 * PATIENCE
        lab.make_nodes(1, slots=1, metrics=False)
        (node,) = lab.nodes
        lab.start_agent(node, "env", "-C", "/", f"PYTHONPATH={installed['PYTHONPATH']}")
        lab.wait_ready(node)
        environment = Path(f"/proc/{lab.agents[node.name]}/environ").read_bytes()
        assert f"PYTHONPATH={installed['PYTHONPATH']}".encode() in environment.split(b"\0")

        with node.client() as client:
            client.request("PUT", "/v1/vpcs/blue", {"vni": 7, "prefixes": ["10.0.0.0/16"]})
            _, answer = client.request("PUT", "/v1/sandboxes/web", {"vpc": "blue",
                                       "address": "10.0.0.9"})  # fmt: skip
        assert answer["state"] == "attached"
