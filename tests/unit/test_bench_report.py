# SPDX-License-Identifier: Apache-2.0
"""Records of benches: compared row by row, and made a page with plots."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml

import pytest

from bench import classic, compare, plot, report
from bench.harness import Row, as_json, ratios
from bench.testbed import BenchError

ABOUT = {
    **{"cpu": "A <CPU>", "cores": 2, "virtual": True, "governor": "", "memory_mib": 1},
    **{"kernel": "6.1", "distribution": "", "taken_at": "2026-01-02", "commit": "abc"},
    **{"load_before": [0], "load_after": [0], "restless_batches": 0},
}


def record(bench="wire", unit="Gbit/s", series=(), **rows):
    """A record as a bench writes it; rows by name, `__` for a dot: rounds of one sample."""
    made = {
        name.replace("__", "."): Row(name.replace("__", "."), unit, [[one] for one in taken])
        for name, taken in rows.items()
    }
    names = list(made)
    found = ratios(made, [(names[0], names[1])] if len(names) > 1 else [])
    return as_json(bench, ABOUT, list(made.values()), found, ["a <note>"], series)


def write(path, what):
    """The file of a record."""
    path.write_text(json.dumps(what))
    return path


def test_a_change_counts_when_the_rounds_lie_apart(tmp_path, capsys):
    """Every round of one above every round of the other; else it is called noise."""
    one = write(tmp_path / "a", record(tcp1__ours=[10, 11, 12], rr__ours=[5, 9], old__ours=[1]))
    two = write(tmp_path / "b", record(tcp1__ours=[20, 22, 24], rr__ours=[8, 10], new__ours=[1]))

    compare.main(one, two)

    lines = {
        words[0]: words[-1]
        for line in capsys.readouterr().out.splitlines()
        if (words := line.split())
    }
    assert lines["tcp1.ours"] == "+100%"
    assert lines["rr.ours"] == "noise"
    assert (lines["only"],) == ("new.ours",)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other/1"}'])
def test_what_is_no_record_is_refused_by_name(tmp_path, text):
    """One line, with the file."""
    path = tmp_path / "x.json"
    path.write_text(text)

    with pytest.raises(BenchError, match=r"x\.json is no record"):
        compare.read(path)


def test_records_of_two_benches_are_not_compared(tmp_path):
    """Their rows mean different things."""
    one = write(tmp_path / "a", record(bench="wire", x=[1]))
    two = write(tmp_path / "b", record(bench="cost", x=[1]))

    with pytest.raises(BenchError, match="is of wire"):
        compare.main(one, two)


def test_two_directories_are_compared_bench_by_bench(tmp_path, capsys):
    """What only one of them has is named."""
    for name, rate in (("a", 10), ("b", 30)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "wire.json", record(tcp1__ours=[rate, rate + 1]))
        write(tmp_path / name / "cost.json", record(bench="cost", cost__x=[5, 6]))
    write(tmp_path / "a" / "storm.json", record(bench="storm", x=[1]))

    compare.main(tmp_path / "a", tmp_path / "b")

    out = capsys.readouterr().out
    assert out.index("## cost") < out.index("cost.x") < out.index("## wire")
    assert "+200%" in out
    assert f"only in {tmp_path / 'a'}: storm.json" in out


def test_a_directory_is_not_compared_with_a_file(tmp_path):
    """Nor with one that shares nothing with it."""
    one = write(tmp_path / "a.json", record(x=[1]))
    (tmp_path / "b").mkdir()

    with pytest.raises(BenchError, match="is a directory"):
        compare.main(one, tmp_path / "b")
    with pytest.raises(BenchError, match="no record of the same bench"):
        compare.main(tmp_path, tmp_path / "b")


def test_the_page_has_every_row_and_says_what_is_noise(tmp_path):
    """Losing rows too; names and notes of a record cannot break it."""
    write(tmp_path / "wire.json", record(tcp1__ours=[1, 4], tcp1__vxlan_bridge=[2, 3]))
    rows = {"make__slot": [400, 410], "attach__agent": [70, 71], "classic__pooled": [660, 700]}
    write(tmp_path / "attach.json", record(bench="attach", unit="us", **rows))
    curve = {"title": "t", "x": "n", "y": "ns", "log_x": True, "lines": {"one": [(1, 5), (10, 6)]}}
    write(tmp_path / "cost.json", record(bench="cost", unit="ns", series=[curve], cost__x__1=[5]))
    filling = record(bench="slots", unit="s", series=[curve], slots__fill=[5])
    write(tmp_path / "slots.json", filling)

    report.main(tmp_path)

    page = (tmp_path / "index.html").read_text()
    for name in ("tcp1.vxlan_bridge", "make.slot", "classic.pooled", "cost.x.1"):
        assert f"<td>{name}<td>" in page
    assert "tcp1.ours/tcp1.vxlan_bridge" in page
    assert "<td>noise" in page
    assert "A &lt;CPU&gt;" in page
    assert "a &lt;note&gt;" in page
    made = {path.name for path in tmp_path.glob("*.svg")}
    assert {"tcp1.svg", "attach.svg", "clocks.svg", "boot.svg", "cost_0.svg"} <= made
    assert "cost_ns.svg" not in made, "its curves have them all"
    for name in made:
        xml.fromstring((tmp_path / name).read_text())
    assert {"slots_s.svg", "slots_0.svg"} <= made, "bars and the curve"
    assert "src=" not in page  # nothing but itself is needed to show it


def test_without_a_record_there_is_no_page(tmp_path):
    """And the directory is named."""
    with pytest.raises(BenchError, match=str(tmp_path)):
        report.main(tmp_path)


@pytest.mark.parametrize("values", [[5.0], [0.003, 20_000.0], [1.0, 1.0], [7.0, 1000.0]])
def test_every_value_lies_on_a_logarithmic_axis(values):
    """Between its ends, in order, and the ends are powers of ten."""
    scale = plot.Scale(values, 10, 110, log=True)

    assert all(10 <= scale(value) <= 110 for value in values)
    assert scale.ticks()[0] == pytest.approx(scale.low)
    assert scale.ticks()[-1] == pytest.approx(scale.high)


def test_bars_are_as_long_as_their_values():
    """From nothing, so that twice as much looks twice as long."""
    picture = xml.fromstring(plot.bars("t", "x", [("a", 10, 9, 11), ("b", 5, 5, 5)]))

    wide = [float(one.get("width")) for one in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert wide[0] == pytest.approx(2 * wide[1], rel=0.01)


def test_every_way_of_attaching_says_where_its_clock_stands():
    """Or the picture would leave it out without a word."""
    forms = {form.name for form in classic.FORMS}

    assert forms <= report.CLOCKS.keys()


def test_many_curves_are_all_named_within_the_picture():
    """However many contestants there are."""
    curves = {f"way {number}": [(1, 1), (2, 2)] for number in range(40)}
    picture = xml.fromstring(plot.lines("t", "x", "y", curves, log_x=False, log_y=False))

    places = [
        float(text.get("y"))
        for text in picture.iter("{http://www.w3.org/2000/svg}text")
        if (text.text or "").startswith("way ")
    ]
    assert len(places) == 40
    assert max(places) <= plot.HEIGHT
