# SPDX-License-Identifier: Apache-2.0
"""Programs that were compiled earlier: the same as compiled, and nothing but what root wrote."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from geneve_ebpf import dataplane
from geneve_ebpf.abi import MAPS, PROGRAMS
from geneve_ebpf.loader import bpf, kept
from geneve_ebpf.loader.compile import load_and_pin
from geneve_ebpf.loader.pins import Pins
from tests import packets, programs
from tests.btf import Btf
from tests.compiled import KEPT, ROOT
from tests.programs import Node


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own, with a good file in it."""
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o700)
    shutil.copy(KEPT / kept.file_name(), directory)
    monkeypatch.setenv("CACHE_DIRECTORY", str(directory))
    return directory


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports bcc ends."""
    (tmp_path / "bcc.py").write_text("raise SystemExit('BCC was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def seen(run_directory: Path) -> list[object]:
    """Programs and maps as the kernel describes them, but for what is another every time."""
    pins, found = Pins(run_directory), []
    for name in PROGRAMS:
        fd = bpf.open_pin(pins.program(name))
        info = bpf.program_info(fd)
        os.close(fd)
        found.append((info.name, info.tag, info.verified_instructions))
    for name in MAPS:
        fd = bpf.open_pin(pins.map(name))
        info = bpf.map_info(fd)
        os.close(fd)
        types = Btf(info.btf_id)
        shape = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
        layout = [types.type(number) for number in (info.btf_key_type, info.btf_value_type)]
        found.append((info.name, shape, layout))
    return found


def test_what_is_kept_is_what_was_compiled(run_directory, cache):
    """Each instruction (a tag is their hash), each map and its types. Few old files stay."""
    (cache / kept.file_name()).unlink()
    for number in range(12):  # of other versions, or drafts of starts that were killed
        (cache / f"programs-{number}").touch()
        os.utime(cache / f"programs-{number}", (number, number))
    (cache / "not-ours").touch()
    assert load_and_pin(run_directory) == ("compiled", "")
    compiled = seen(run_directory)
    pins = Pins(run_directory)
    pins.unmount()
    pins.mount()

    assert load_and_pin(run_directory) == ("kept", "")

    assert seen(run_directory) == compiled
    written = (cache / kept.file_name()).stat()
    assert (written.st_uid, written.st_mode & 0o777) == (0, 0o600)
    newest = {f"programs-{number}" for number in range(5, 12)}
    assert {path.name for path in cache.iterdir()} == newest | {kept.file_name(), "not-ours"}


@pytest.fixture
def other_node() -> Iterator[Node]:
    """One whose programs may be changed."""
    with programs.loaded(slot_count=1) as made:
        made.attach(0, "alice", packets.BLUE, packets.ALICE)
        yield made


@pytest.mark.usefixtures("no_compiler")
def test_a_start_with_kept_programs_needs_no_compiler(other_node):
    """New ones take the old ones' place on the same maps: nobody is detached."""
    node = other_node
    attached = list(node.plane.attachments())
    before = node.program_info("sandbox_tx").id
    for name in PROGRAMS:
        node.pins.program(name).unlink()

    again = dataplane.bring_up(node.settings)

    facts = dataplane.facts(node.settings.run_directory)
    assert (facts.boot, facts.remark) == ("kept", "")
    assert facts.program != before
    assert list(again.attachments()) == attached != []
    again.close()


def _flip(file: Path) -> None:
    text = bytearray(file.read_bytes())
    text[len(text) // 2] ^= 1
    file.write_bytes(text)


def _link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "one-bit-else": (_flip, "it is damaged"),
    "cut-off": (lambda file: os.truncate(file, file.stat().st_size - 1), "it is damaged"),
    "empty": (lambda file: os.truncate(file, 0), "it is damaged"),
    "another-user's": (lambda file: os.chown(file, 65534, 65534), "somebody other than root"),
    "the-group-may-write": (lambda file: file.chmod(0o620), "somebody other than root"),
    "directory-of-another-user": (
        lambda file: os.chown(file.parent, 65534, 65534),
        "somebody other than root can write the directory",
    ),
    "directory-for-all": (
        lambda file: file.parent.chmod(0o777),
        "somebody other than root can write the directory",
    ),
    "a-link": (_link, "Too many levels of symbolic links"),
    "a-second-name": (lambda file: os.link(file, file.with_name("two")), "with one name"),
    "a-fifo": (_fifo, "not a file"),
}


@pytest.mark.parametrize(("spoil", "why"), SPOILT.values(), ids=SPOILT)
def test_a_file_that_others_may_have_written_is_refused(run_directory, cache, spoil, why):
    """Damaged, or in reach of somebody who is not root: not a map of it is made."""
    spoil(cache / kept.file_name())

    with pytest.raises(kept.Refused, match=why):
        kept.load(run_directory)

    assert not Pins(run_directory).directory.exists()


def rewrite(file: Path, **changes: object) -> None:
    """The file as it would be if something in it had been otherwise when it was made."""
    head = len(kept._MAGIC) + 32
    contents = msgspec.msgpack.decode(file.read_bytes()[head:]) | changes
    text = msgspec.msgpack.encode(contents)
    file.write_bytes(kept._MAGIC + hashlib.sha256(text).digest() + text)


def test_another_compiler_or_header_makes_it_stale(run_directory, cache):
    """An upgrade of either changes files: compiled again, and nothing to remark on."""
    file = cache / kept.file_name()
    rewrite(file)
    assert kept.load(run_directory) is True

    rewrite(file, made_with={"/usr/include/linux/bpf.h": (1, 1)})

    assert kept.load(run_directory) is False


def test_the_compiler_and_every_header_are_noted(cache):
    """By the files that were really used."""
    noted = msgspec.msgpack.decode((cache / kept.file_name()).read_bytes()[len(kept._MAGIC) + 32 :])

    names = {Path(path).name.partition(".so")[0] for path in noted["made_with"]}
    assert {"libbcc", "libLLVM-14", "libclang-cpp", "ip.h", "bpf.h"} <= names


def test_other_sources_have_another_file(tmp_path):
    """One letter is enough; there is nothing to load for those yet."""
    for name in ("geneve_ebpf", "bpf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "bpf" / "sandbox_guard.bpf.c", "a") as file:
        file.write(" ")
    ask = "from geneve_ebpf.loader import kept; print(kept.file_name())"
    names = [
        subprocess.run(
            [sys.executable, "-c", ask], cwd=where, capture_output=True, text=True, check=True
        ).stdout.strip()
        for where in (ROOT, tmp_path)
    ]

    assert names[0] == kept.file_name()
    assert names[1] != names[0]


def test_what_is_refused_is_compiled_anew_and_replaced(run_directory, cache):
    """Here by the kernel, as a file might be that was made for one that takes more."""
    endless = bytes.fromhex("0500ffff00000000")
    file = cache / kept.file_name()
    rewrite(file, programs=dict.fromkeys(PROGRAMS, endless))

    boot, remark = load_and_pin(run_directory)  # on the maps that the file's start had made

    assert boot == "compiled"
    assert remark.startswith(f"{file} is not used: the kernel does not take it: ")
    assert Pins(run_directory).have_programs()
    Pins(run_directory).unmount()
    Pins(run_directory).mount()
    assert load_and_pin(run_directory) == ("kept", "")


def test_programs_that_cannot_be_kept_are_loaded_all_the_same(run_directory, tmp_path, monkeypatch):
    """A file where the directory should be: the node comes up, and says why it will compile."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "file"))

    boot, remark = load_and_pin(run_directory)

    assert boot == "compiled"
    assert remark.startswith(f"programs are not kept in {tmp_path}/file: [Errno ")
    assert Pins(run_directory).have_programs()


def test_bpftool_reads_the_types_of_kept_programs(node: Node):
    """What an operator sees of a map does not depend on how the node came up."""
    shown = subprocess.run(
        ["bpftool", "map", "dump", "pinned", str(node.pins.map("node_config"))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert dataplane.facts(node.settings.run_directory).boot == "kept"
    assert '"vtep":' in shown
