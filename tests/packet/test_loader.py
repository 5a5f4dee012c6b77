# SPDX-License-Identifier: Apache-2.0
"""Compiling, pinning and adopting, on the real kernel; what each failure says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.abi import Key32, NodeState
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader import bpf, source
from geneve_ebpf.loader.compile import compile_and_pin
from geneve_ebpf.loader.maps import SharedArray, Table
from geneve_ebpf.loader.pins import Pins, is_bpffs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of package and sources to spoil, which child processes use instead of ours."""
    for name in ("geneve_ebpf", "bpf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "bpf"


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.mark.usefixtures("node")
def test_verifier_rejection_shows_the_end_of_its_log(run_directory, other_sources):
    """The instruction that failed and why, not the thousands before; nothing is pinned."""
    replace_in(
        other_sources / "lib" / "receive.h",
        "	ifindex = binding->ifindex;\n",
        "	ifindex = ((struct vtep *)vteps.lookup(&arrival.sender))->mtu;\n",
    )

    with pytest.raises(GeneveError) as caught:
        compile_and_pin(run_directory)

    first, *lines = caught.value.message.splitlines()
    assert caught.value.code is Code.LOAD_FAILED
    assert "did not compile or load" in first
    assert "invalid mem access 'map_value_or_null'" in lines[-1]
    assert len(lines) == 25
    assert "doctor" in caught.value.hint
    assert list(Pins(run_directory).directory.glob("uplink_rx-*")) == []


@pytest.mark.usefixtures("node")
def test_compiler_error_names_the_file_and_line(run_directory, other_sources):
    """The header's own, though everything is compiled as one text."""
    header = other_sources / "lib" / "arp.h"
    replace_in(header, "	arp->sender = asked;\n", "	arp->sender = asked_typo;\n")
    number = next(n for n, line in enumerate(header.read_text().splitlines(), 1) if "typo" in line)

    with pytest.raises(GeneveError) as caught:
        compile_and_pin(run_directory)

    assert caught.value.code is Code.LOAD_FAILED
    assert f"lib/arp.h:{number}:" in caught.value.message
    assert "asked_typo" in caught.value.message
    assert caught.value.message.endswith("1 error generated.")


def test_starting_again_adopts_what_is_pinned(node, tmp_path, monkeypatch):
    """Same programs, same attachments; and without a compiler, so nothing was compiled."""
    (tmp_path / "bcc.py").write_text("raise SystemExit('BCC was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = [node.program_info(name).id for name in ("sandbox_tx", "uplink_rx")]
    attached = list(node.plane.attachments())

    again = dataplane.bring_up(node.settings)

    facts = dataplane.facts(node.settings.run_directory)
    assert facts.boot == "adopted"
    assert facts.program == before[0]
    assert list(again.attachments()) == attached != []
    again.close()
    for name, ident in zip(("sandbox_tx", "uplink_rx"), before, strict=True):
        fd = bpf.open_pin(node.pins.program(name))
        assert bpf.program_info(fd).id == ident
        os.close(fd)


def test_another_layout_is_refused(node, run_directory):
    """Its maps may hold live sandboxes of another version: neither adopted nor replaced."""
    other = run_directory / "bpf" / "0123456789ab"
    other.mkdir()
    fd = bpf.open_pin(node.pins.map("bindings"))
    bpf.pin(fd, other / "bindings")
    os.close(fd)

    with pytest.raises(GeneveError) as caught:
        dataplane.DataPlane.open(run_directory)

    assert caught.value.code is Code.LAYOUT_MISMATCH
    assert "0123456789ab" in caught.value.message
    assert source.layout_hash() in caught.value.message


def test_another_layout_stops_the_start(node, monkeypatch, tmp_path):
    """A changed struct refuses the node of the old one, and that goes on as it was."""
    for name in ("geneve_ebpf", "bpf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    replace_in(
        tmp_path / "bpf" / "geneve_abi.h", "\t__u32 slot_mtu;", "\t__u64 slot_mtu;"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pinned = sorted(path.name for path in node.pins.directory.iterdir())

    with pytest.raises(GeneveError) as caught:
        dataplane.bring_up(node.settings)

    assert caught.value.code is Code.LAYOUT_MISMATCH
    assert node.pins.directory.name in caught.value.message
    assert "node down" in caught.value.hint
    assert sorted(path.name for path in node.pins.directory.iterdir()) == pinned
    assert [path for path in node.pins.root.iterdir() if path.is_dir()] == [node.pins.directory]


@pytest.mark.parametrize(
    "open_map",
    [
        pytest.param(lambda pins: Table(pins.map("endpoints"), Key32, Key32), id="by-system-calls"),
        pytest.param(
            lambda pins: SharedArray(pins.map("bindings"), NodeState, writable=False), id="mapped"
        ),
    ],
)
def test_map_of_another_shape_is_not_opened(node, open_map):
    """Reading a larger value into a smaller buffer would overrun it."""
    with pytest.raises(GeneveError) as caught:
        open_map(node.pins)

    assert caught.value.code is Code.LAYOUT_MISMATCH


def test_bpffs_is_the_nodes_own(node):
    """Mounted below the run directory; mounting it again changes nothing."""
    assert is_bpffs(node.pins.root)
    assert not is_bpffs(node.pins.root.parent)

    node.pins.mount()

    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    assert sum(f" {node.pins.root} " in line for line in mounts) == 1
