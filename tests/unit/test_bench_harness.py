# SPDX-License-Identifier: Apache-2.0
"""The bench's arithmetic and its record: what a figure in a report stands for."""

from __future__ import annotations

import json

import pytest

from bench import harness, machine
from bench.harness import Contestant, Row
from bench.testbed import BenchError


def always(value: float) -> Contestant:
    """A contestant that measures the same each time."""
    return Contestant(f"always.{value}", "us", 3, lambda n: [value] * n)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.0, 1)]
)
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(share, expected):
    """Nearest rank: nothing between two samples is invented."""
    assert harness.percentile(range(1, 101), share) == expected


def test_the_p99_of_few_samples_is_the_worst():
    """With 10 samples there is no better word for the tail than the largest."""
    assert harness.percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 500], 0.99) == 500


def test_contestants_take_turns_and_every_second_round_runs_backwards():
    """Nobody always follows the same one."""
    order = []

    def note(name: str) -> Contestant:
        return Contestant(name, "us", 1, lambda n: order.append(name) or [1.0] * n, 1)

    harness.take_turns([note("a"), note("b")], 3, settle=lambda: True)

    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_the_warm_up_round_is_dropped():
    """Its samples are taken, and in no row."""
    values = iter([[1000.0], [1.0], [3.0]])
    warming = Contestant("warming", "us", 1, lambda n: next(values), lead_in=0)

    rows = harness.take_turns([warming], 2, settle=lambda: True).rows

    assert rows["warming"].rounds == [[1.0], [3.0]]


def test_the_first_sample_of_each_turn_is_dropped():
    """It pays for what the contestant before did to the caches."""
    cold = Contestant("cold", "us", 2, lambda n: [900.0] + [1.0] * (n - 1))

    rows = harness.take_turns([cold], 2, settle=lambda: True).rows

    assert rows["cold"].rounds == [[1.0, 1.0], [1.0, 1.0]]


def test_a_machine_that_does_not_come_to_rest_is_reported():
    """So that a reader knows why a run is unstable."""
    restless = harness.take_turns([always(1.0)], 4, settle=lambda: False).restless

    assert restless == 5


def test_spread_is_between_the_rounds_medians():
    """One bad sample is the tail's matter; rounds that differ make the median doubtful."""
    steady = Row("steady", "us", [[10, 10, 99], [10, 10, 10]])
    moving = Row("moving", "us", [[8, 8, 8], [12, 12, 12], [10, 10, 10]])

    assert steady.spread == 0
    assert moving.spread == pytest.approx(0.4)


def test_a_ratio_is_of_medians_and_knows_how_far_rounds_differ():
    """classic.script/attach.agent is how many times longer the script takes."""
    rows = {
        "slow": Row("slow", "us", [[100, 100, 900], [120, 120, 120]]),
        "fast": Row("fast", "us", [[10, 10, 10], [10, 10, 10]]),
    }

    found = harness.ratios(rows, [("slow", "fast"), ("slow", "absent")])

    assert list(found) == ["slow/fast"]
    ratio = found["slow/fast"]
    assert (ratio.value, ratio.low, ratio.high) == (12, 10, 12)
    assert not ratio.is_noise


def test_a_ratio_whose_rounds_disagree_is_called_noise():
    """One round says faster, another slower: the table must not name a winner."""
    rows = {"a": Row("a", "us", [[9], [11]]), "b": Row("b", "us", [[10], [10]])}

    found = harness.ratios(rows, [("a", "b")])

    assert found["a/b"].is_noise
    assert "noise" in harness.table(list(rows.values()), found)


def test_the_record_has_the_documented_shape(tmp_path, capsys):
    """Whatever reads bench results relies on these names."""
    turns = harness.take_turns([always(2.0), always(6.0)], 2, settle=lambda: True)

    harness.report("attach", machine.record(), turns.rows, [("always.6.0", "always.2.0")],
                   restless=turns.restless, notes=["a note"], json_file=str(tmp_path / "out.json"))

    record = json.loads((tmp_path / "out.json").read_text())
    assert record["schema"] == "geneve-ebpf/bench/1"
    assert record["bench"] == "attach"
    assert record["ratios"] == {"always.6.0/always.2.0": 3.0}
    assert [row["name"] for row in record["results"]] == ["always.2.0", "always.6.0"]
    assert {"name", "unit", "n", "p50", "p90", "p99", "max"} <= set(record["results"][0])
    assert record["results"][0]["n"] == 6
    noted = {"cpu", "cores", "kernel", "governor", "load_before", "load_after"}
    assert noted <= set(record["machine"])
    assert "always.6.0/always.2.0" in capsys.readouterr().out


def test_who_fails_is_thrown_out_and_the_others_go_on(tmp_path, capsys):
    """Its earlier rounds too; the record is written first, and says why."""
    answers = iter([[1.0], [1.0]])

    def fail_later(samples: int) -> list[float]:
        for answer in answers:
            return answer
        raise BenchError("a packet was dropped")

    def fail_at_once(samples: int) -> list[float]:
        raise OSError(24, "Too many open files")

    wrong = Contestant("wrong", "us", 1, fail_later, lead_in=0)
    worse = Contestant("worse", "us", 1, fail_at_once)
    turns = harness.take_turns([worse, always(2.0), wrong], 3, settle=lambda: True)

    with pytest.raises(BenchError, match="without worse, wrong"):
        harness.report("x", machine.record(), turns.rows, [("wrong", "always.2.0")],
                       restless=0, notes=[], failed=turns.failed,
                       json_file=str(tmp_path / "out.json"))

    record = json.loads((tmp_path / "out.json").read_text())
    assert [(row["name"], row["n"]) for row in record["results"]] == [("always.2.0", 9)]
    assert record["failed"] == {
        "worse": "OSError: [Errno 24] Too many open files", "wrong": "a packet was dropped",
    }  # fmt: skip
    assert record["ratios"] == {}
    assert "wrong is thrown out: a packet was dropped" in capsys.readouterr().out


def test_json_on_stdout_is_json_alone(capsys):
    """With `--json -` the table goes to stderr, so that a pipe gets the record only."""
    turns = harness.take_turns([always(2.0)], 1, settle=lambda: True)

    harness.report("tcp", machine.record(), turns.rows, [], restless=turns.restless, notes=[],
                   json_file="-")

    out, talk = capsys.readouterr()
    assert json.loads(out)["bench"] == "tcp"
    assert "always.2.0" in talk
