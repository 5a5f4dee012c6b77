# SPDX-License-Identifier: Apache-2.0
"""The contestants of the wire's bench carry what they name, and a wrong way is found out."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bench import beds, everything, machines, slots, wire
from bench.beside import beside
from bench.compiled import compiled
from bench.ours import run_root
from bench.served import served
from bench.testbed import BenchError, two_nodes

QUICK = [work for work in wire.WORKS if work.name in ("tcp1", "udp64", "rr", "connect")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """traffic.c, compiled."""
    made = compiled("traffic.c", tmp_path_factory.mktemp("traffic"))
    assert made is not None
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure counts here."""
    monkeypatch.setattr(wire, "WARM_UP", 0.05)
    monkeypatch.setattr(wire, "SECONDS", 0.1)


CPUS = (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))


NAMES = (
    *("ours", "vxlan_bridge", "vxlan_shared", "bare_veth", "floor_redirect", "floor_xdp"),
    *wire.TAPS,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_contestant_does_every_work(program: Path, name: str) -> None:
    """By the way that it names: its own checks of counters and packet sizes are in `measured`."""
    side = wire.Side()
    with wire.BEDS[name]() as bed:
        for work in QUICK:
            (value,) = wire.measured(program, work, name, bed, CPUS, side, 1)
            assert value > 0, work.name

    assert {f"cpu_tcp1.{name}", f"skbs_tcp1.{name}", f"rr_p99.{name}"} <= set(side.rows)


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["geneve_bridge", "ovs_kernel"])
def test_a_contestant_that_few_kernels_have_does_every_work(program: Path, name: str) -> None:
    """It joins the others where the kernel has its device, and a row without that is found out."""
    side = wire.Side()
    with ExitStack() as stack:
        made, absent = wire.make_beds(stack, {name})
        if name in absent:
            pytest.skip(absent[name])
        for work in QUICK:
            (value,) = wire.measured(program, work, name, made[name], CPUS, side, 1)
            assert value > 0, work.name
        other = stack.enter_context(beds.bare_veth())
        astray = replace(other, check=made[name].check)
        with pytest.raises(BenchError, match=r"(tunnel|genev_sys_6081) sent \d+ bytes, not"):
            wire.measured(program, QUICK[0], "bare_veth", astray, CPUS, side, 1)


def test_a_wire_that_is_not_as_the_row_says_is_found_out(program: Path) -> None:
    """Superpackets where there should be none, and the other way round."""
    one, whole = (next(w for w in wire.WORKS if w.name == n) for n in ("tcp1", "tcp1_superpackets"))
    with beds.bare_veth() as bed:
        bed.set_wire(wire.SUPER)
        stuck = replace(bed, set_wire=lambda _: None)
        with pytest.raises(BenchError, match="bytes a packet"):
            wire.measured(program, one, "bare_veth", stuck, CPUS, wire.Side(), 1)
        bed.set_wire(wire.SEGMENTS)
        with pytest.raises(BenchError, match="bytes a packet"):
            wire.measured(program, whole, "bare_veth", stuck, CPUS, wire.Side(), 1)


def test_bytes_that_went_another_way_are_found_out(program: Path) -> None:
    """Counters of the device that the row names did not move."""
    work = next(work for work in wire.WORKS if work.name == "tcp1")
    with beds.bare_veth() as bed, beds.tunnel_bridge("vxlan") as idle:
        astray = replace(bed, check=idle.check)
        with pytest.raises(BenchError, match=r"tunnel sent \d+ bytes, not"):
            wire.measured(program, work, "bare_veth", astray, CPUS, wire.Side(), 1)


def test_bytes_that_did_not_pass_the_taps_are_found_out(program: Path) -> None:
    """A machine's row is of its tap: that of a machine that does nothing did not carry it."""
    work = next(work for work in wire.WORKS if work.name == "tcp1")
    with beds.bare_veth() as bed, machines.vxlan_bridge_tap() as idle:
        astray = replace(bed, check=idle.check)
        with pytest.raises(BenchError, match=r"the taps carried \d+ and \d+ bytes, not"):
            wire.measured(program, work, "bare_veth", astray, CPUS, wire.Side(), 1)


@pytest.mark.parametrize("name", slots.TAPS)
def test_a_node_is_filled_with_taps(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of the kind that the row names; and its metrics can be scraped meanwhile."""
    monkeypatch.setattr(slots, "settle", lambda: None)  # no figure counts here
    rows = slots.Rows()
    with two_nodes("fill") as (left, right), run_root() as root:
        with served(right, "few", root, 2) as few:
            few.rest()
            with beside(slots.scraper, 1, right.netns) as scrapes:
                slots.fill(rows, left, few, root, 4, name, slots.TAPS[name])
        left_over = list((root / name).glob("netns/*"))

    assert set(rows.rows) == {f"slots.fill_4_{name}", f"slots.memory_each_{name}"}
    assert scrapes
    assert left_over == []


def test_one_bench_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    """Their records and the page are there, and what failed is named at the end."""
    parts = [everything.Part("nothing", 1, 0, 0), everything.Part("first_byte", 1, 20, 5)]

    with pytest.raises(BenchError, match="failed, wholly or in some rows: nothing"):
        everything.measure(tmp_path / "report", parts)

    found = json.loads((tmp_path / "report" / "first_byte.json").read_text())
    assert "first_byte.ours" in {row["name"] for row in found["results"]}
    assert "first_byte.ours" in (tmp_path / "report" / "index.html").read_text()


def test_every_ratio_is_of_two_rows_that_are_taken() -> None:
    """Else it would be left out of the table without a word."""
    side = {"tcp": ("", "cpu_"), "udp": ("", "cpu_"), "rr": ("",), "connect": ("",)}
    taken = {
        f"{before}{work.name}.{name}"
        for work in wire.WORKS
        for before in side[work.tool]
        for name in work.contestants
    } | {
        f"{work.name}_p99.{name}"
        for work in wire.WORKS
        if work.tool == "rr"
        for name in work.contestants
    }

    assert {row for pair in wire.pairs() for row in pair} <= taken
