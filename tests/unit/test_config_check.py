# SPDX-License-Identifier: Apache-2.0
"""`geneve-ebpf config check` finds every mistake of a file at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geneve_ebpf.cli.app import run

GOOD = '[node]\nvtep = "192.0.2.1"\nuplinks = ["eth1"]\n'
BAD = """
[node]
uplinks = "eth1"
slots = -3
colour = "green"

[metrics]
listen = "everywhere"

[weather]
rain = true
"""


def checked(tmp_path: Path, text: str, *options: str) -> int:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return run(["config", "check", str(path), *options])


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ("", "16 namespace slots"),
        ("slots = 2\ntap_slots = 3\n", "2 namespace slots, 3 tap slots"),
        ("slots = 0\n", "no slots"),
    ],
)
def test_a_good_file_is_said_to_be_well(tmp_path, capsys, more, kept):
    assert checked(tmp_path, GOOD + more) == 0

    out, err = capsys.readouterr()
    assert out.endswith(f"well: node default, VTEP 192.0.2.1 by eth1, {kept}\n")
    assert err == ""


def test_every_mistake_is_told_with_its_hint(tmp_path, capsys):
    """A wrong value, a missing key, an unknown key, another table's value, an unknown table."""
    assert checked(tmp_path, BAD) == 2

    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    for what in ("weather", "node.vtep", "node.uplinks", "node.slots", "colour", "metrics.listen"):
        assert sum(what in line for line in errors) == 1, what
    assert len(errors) == 6
    assert err.count("hint: ") >= 5
    assert "Traceback" not in err


def test_json_has_the_same_list(tmp_path, capsys):
    assert checked(tmp_path, BAD, "--json") == 2

    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "geneve-ebpf/config-check/1"
    assert answer["ok"] is False
    assert {problem["code"] for problem in answer["problems"]} == {"bad_config"}
    assert {problem["field"] for problem in answer["problems"]} == {
        "weather", "node.vtep", "node.uplinks", "node.slots", "node.colour", "metrics.listen",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["[node", "", 'node = "x"\n', '[guest]\ngateway = "1.1.1.1"\n'])
def test_a_file_that_is_no_configuration_ends_in_words(tmp_path, capsys, text):
    """Not TOML, empty, a table that is none, values that only fit together."""
    assert checked(tmp_path, text) == 2

    assert "error: " in capsys.readouterr().err


def test_a_vtep_that_fits_nothing_else_there_is_told_once(tmp_path, capsys):
    """It is the one that is taken to look past a missing VTEP: there is an end all the same."""
    text = """
[node]
vtep = "192.0.2.1"
uplinks = ["eth0"]
[guest]
network = "192.0.2.0/30"
address = "192.0.2.1"
gateway = "192.0.2.2"
"""
    assert checked(tmp_path, text) == 2

    assert capsys.readouterr().err.count("error: node.vtep 192.0.2.1 is in the guest's") == 1


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert run(["config", "check", str(tmp_path / "none.toml")]) == 2

    assert "cannot read" in capsys.readouterr().err
