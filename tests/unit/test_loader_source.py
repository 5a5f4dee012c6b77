# SPDX-License-Identifier: Apache-2.0
"""The text that is compiled, the hashes that name it, and what a failure's log is cut to."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from geneve_ebpf import abi
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader import source
from geneve_ebpf.loader.compile import compile_and_pin, relevant


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of bpf/ to change; the hashes are made of it."""
    copy = tmp_path / "bpf"
    shutil.copytree(abi.bpf_directory(), copy)
    monkeypatch.setattr(source, "bpf_directory", lambda: copy)
    return copy


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def hashes() -> tuple[str, str]:
    return source.layout_hash(), source.program_hash()


# -- one text


def test_text_holds_every_header_once(sources):
    """Include guards or not, a struct must not come twice."""
    text = source.program_text()

    for header in ("geneve_abi.h", "lib/maps.h", "lib/inner.h", "lib/arp.h"):
        assert text.count(f'#line 1 "{header}"') == 1
    assert '#include "' not in text
    assert text.count("struct binding {") == 1


def test_text_comes_before_what_uses_it(sources):
    """Structs, then maps, then the two programs."""
    text = source.program_text()
    order = ["struct binding {", "MAX_SLOTS,", "int sandbox_tx(", "int uplink_rx("]

    assert sorted(order, key=text.index) == order


def test_line_numbers_are_those_of_the_files(sources):
    """Every line of the text says, by the #line before it, where it stands."""
    files: dict[str, list[str]] = {}
    name, number = "", 0
    for line in source.program_text().splitlines():
        if mark := re.fullmatch(r'#line (\d+) "(.+)"', line):
            name, number = mark[2], int(mark[1])
            files.setdefault(name, (sources / name).read_text().splitlines())
        elif number <= len(files[name]):
            stands = files[name][number - 1]
            # A header that was there before leaves an empty line.
            assert line == ("" if stands.startswith('#include "') else stands)
            number += 1
        else:
            assert line == ""


def test_system_headers_are_left_to_the_compiler(sources):
    """Only our own are pasted in."""
    assert "#include <uapi/linux/bpf.h>" in source.program_text()


# -- hashes


def test_hashes_are_short_names(sources):
    """Twelve hex digits each, and not the same."""
    layout, program = hashes()

    assert re.fullmatch("[0-9a-f]{12}", layout)
    assert re.fullmatch("[0-9a-f]{12}", program)
    assert layout != program


@pytest.mark.parametrize("name", ["geneve_abi.h", "lib/maps.h", "lib/inner.h", "uplink_rx.bpf.c"])
def test_comments_and_spacing_do_not_change_a_hash(sources, name):
    """Rewording a comment must not take a node down."""
    before = hashes()
    path = sources / name

    path.write_text("/* new\n * words */\n" + path.read_text().replace("\t", "        ") + "\n\n")

    assert hashes() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("geneve_abi.h", "__u32 slot_mtu;", "__u64 slot_mtu;"),
        ("geneve_abi.h", "__u32 ifindex;", "__u32 interface;"),
        ("geneve_abi.h", "#define MAX_SLOTS 16384", "#define MAX_SLOTS 32768"),
        (
            "geneve_abi.h",
            "X(2, WIRE_ARP_ANSWERED,",
            'X(3, MORE, "more") \\\n\tX(2, WIRE_ARP_ANSWERED,',
        ),
        ("lib/maps.h", "BPF_F_NO_PREALLOC", "0"),
        ("lib/maps.h", '"lpm_trie"', '"hash"'),
    ],
    ids=["wider-field", "renamed-field", "more-entries", "another-event", "flag", "map-type"],
)
def test_a_changed_map_changes_both_hashes(sources, name, old, new):
    """Its pins could not be used."""
    layout, program = hashes()

    replace_in(sources / name, old, new)

    assert source.layout_hash() != layout
    assert source.program_hash() != program


def test_a_reworded_reason_does_not_change_the_layout(sources):
    """It is Python's text only; rows stay where they are."""
    layout = source.layout_hash()

    replace_in(sources / "geneve_abi.h", '"not dropped"', '"got through"')

    assert source.layout_hash() == layout


def test_changed_code_changes_the_program_only(sources):
    """Maps are kept over such an upgrade, and so are the sandboxes."""
    layout, program = hashes()

    replace_in(sources / "lib/outer.h", "#define OUTER_TTL 64", "#define OUTER_TTL 63")

    assert source.layout_hash() == layout
    assert source.program_hash() != program


# -- failures

VERIFIER_LOG = """\
bpf: Failed to load program: Permission denied
0: R1=ctx() R10=fp0
{steps}
812: (71) r1 = *(u8 *)(r0 +4)
R0 invalid mem access 'map_value_or_null'
processed 913 insns (limit 1000000) max_states_per_insn 4 total_states 60

Traceback (most recent call last):
  File "compile.py", line 88, in _compile
    program = built.load_func(name, bcc.BPF.SCHED_CLS)
Exception: Failed to load BPF program b'uplink_rx': Permission denied
"""


def test_of_a_verifier_log_the_end_matters():
    """The last line is why; statistics and Python's own trace are left out."""
    log = VERIFIER_LOG.format(steps="\n".join(f"{n}: (bf) r6 = r1" for n in range(800)))

    lines = relevant(log).splitlines()

    assert lines[-1] == "R0 invalid mem access 'map_value_or_null'"
    assert lines[-2].startswith("812: ")
    assert len(lines) <= 25


def test_of_a_compiler_log_everything_that_fits_is_kept():
    """There is no line with statistics to stop at."""
    words = "lib/arp.h:40:9: error: use of undeclared identifier 'x'\n1 error generated."
    trace = '\n\nTraceback (most recent call last):\n  File "compile.py"\nException: Failed\n'

    assert relevant(words + trace) == words


def test_of_a_failure_without_a_log_the_trace_is_kept():
    """A defect of ours, before any compiler was asked."""
    trace = 'Traceback (most recent call last):\n  File "compile.py"\nOSError: no space'

    assert relevant(trace) == trace


def test_an_empty_log_stays_empty():
    """A child killed by a signal says nothing."""
    assert relevant("") == ""


@pytest.mark.parametrize(
    "module", ["", "raise ImportError('no libbcc')\n"], ids=["another-bcc", "broken-bcc"]
)
def test_a_bcc_that_is_not_bcc_is_named(tmp_path, monkeypatch, module):
    """PyPI has an unrelated package of that name."""
    (tmp_path / "bcc.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(GeneveError) as caught:
        compile_and_pin(tmp_path / "run")

    assert caught.value.code is Code.KERNEL_UNSUPPORTED
    assert "BPF Compiler Collection" in caught.value.message
    assert "python3-bpfcc" in caught.value.hint
    assert not (tmp_path / "run").exists()
