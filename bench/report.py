# SPDX-License-Identifier: Apache-2.0
"""One page out of a directory's records: plots, tables, the machine; rows in which we lose, too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench import plot
from bench.compare import read
from bench.harness import number
from bench.testbed import BenchError

STORMS = "storms.html"  # the simulation's page
Record = dict[str, Any]
TITLES = {
    "attach": "Putting one sandbox into its network",
    "storm": "Many at the same instant",
    "first_byte": "Until the first byte from another node",
    "slots": "Slots, made ahead",
    "wire": "What the wire carries",
    "cost": "What a packet costs our programs",
    "sustained": "Coming and going for minutes",
    "soak": "Coming and going, and every count is back",
}
_ALL = "namespace, veth, bridge, addr., tunnel"
_OURS_AHEAD = "namespace, veth"
# What each clock covers: what is done before it, and while it runs.
CLOCKS = {
    "attach.library": (_OURS_AHEAD, "two map entries"),
    "attach.agent": (_OURS_AHEAD, "request, two map entries, answer"),
    "attach.agent_one_cpu": (_OURS_AHEAD, "request, two map entries, answer"),
    "attach.agent_c": (_OURS_AHEAD, "request, two map entries, answer"),
    "attach.verify": (_OURS_AHEAD, "request, two map entries, a probe, answer"),
    "classic.pooled_raw": ("namespace, veth, bridge, addr.", "tunnel: one message"),
    "classic.pooled": ("namespace, veth, bridge, addr.", "tunnel"),
    "classic.pooled_address": ("namespace, veth, bridge", "addresses, tunnel"),
    "classic.netlink_raw": ("nothing", _ALL),
    "classic.netlink": ("nothing", _ALL),
    "classic.script": ("nothing", f"{_ALL}, rules"),
}
WORKS = {
    "tcp1": "One TCP stream",
    "tcp1_nogro": "One TCP stream, GRO of the uplink off",
    "tcp1_superpackets": "One TCP stream, superpackets on the underlay",
    "tcp8": "Eight TCP streams",
    "udp64": "Datagrams of 18 bytes (64 on the sandbox's link)",
    "udp1400": "Datagrams of 1,372 bytes (packets of 1,400)",
    "rr": "One byte there and back, p50 (less is better)",
    "rr_p99": "One byte there and back, p99 (less is better)",
    "rr_one_cpu": "The same on one CPU, p50 (less is better)",
    "rr_one_cpu_p99": "The same on one CPU, p99 (less is better)",
    "connect": "TCP connections opened",
    "cpu_tcp1": "CPU of both ends, one TCP stream (less is better)",
    "cpu_tcp8": "CPU of both ends, eight TCP streams (less is better)",
    "cpu_udp64": "CPU of both ends a small datagram (less is better)",
    "cpu_udp1400": "CPU of both ends a large datagram (less is better)",
    "skbs_tcp1": "Packets given to the sandbox's stack (less is better)",
}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>geneve-ebpf: a run of the benches</title>
<style>
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
background:#fff;color:#1a1a1a}
table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #8884}
td:first-child,th:first-child{text-align:left}
svg{max-width:100%;height:auto;display:block;margin:1rem 0}
.noise{opacity:.6}summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e8e8e8}}
@media print{body{background:#fff;color:#000;max-width:none}svg,table{break-inside:avoid}
details>*{display:block}}
</style>
"""
INTRODUCTION = """<p>Rows of one run may be compared, those of two hardly. Contestants take
turns; a first round is dropped; a bar is the median of all samples, its whisker goes from the
lowest round's median to the highest's. Where some rounds say more and others less, a ratio is
called noise. Nothing is left out: rows in which we lose are here too.</p>
<p>The comparison that counts for attaching is <b>classic.pooled</b>: like ours, it has made all
ahead that can be made without knowing the tenant. Against a script that makes everything anew
anybody looks fast. Making slots is work that was moved, not saved: <b>make.slot</b> is its cost.
</p>
"""


def main(directory: Path) -> None:
    """Write index.html and an SVG for each plot. Raises BenchError without any record."""
    records = [read(path) for path in sorted(directory.glob("*.json"))]
    if not records:
        raise BenchError(f"no record of a bench in {directory}")
    order = list(TITLES)
    records.sort(key=lambda one: order.index(one["bench"]) if one["bench"] in order else 99)
    parts = [PAGE, "<h1>A run of the benches</h1>", machine(records), INTRODUCTION]
    for record in records:
        name = record["bench"]
        parts.append(f"<h2>{escape(TITLES.get(name, name))}</h2>")
        for label, picture in plots(record):
            (directory / f"{label}.svg").write_text(picture + "\n")
            parts.append(picture)
        parts.append(
            "<ul>" + "".join(f"<li>{escape(note)}" for note in record.get("notes", [])) + "</ul>"
        )
        parts.append(ratios(record) + rows(record))
    if (directory / STORMS).exists():
        parts.append(f'<p><a href="{STORMS}">Storms, simulated with these times</a></p>')
    (directory / "index.html").write_text("\n".join(parts) + "\n")


def machine(records: Sequence[Record]) -> str:
    """What it ran on, once, and the load of each bench."""
    about = records[0]["machine"]
    shown = ("cpu", "cores", "virtual", "governor", "memory_mib", "kernel", "distribution")
    lines = [f"<tr><td>{key}<td>{escape(str(about[key]))}" for key in shown]
    for record in records:
        one = record["machine"]
        lines.append(
            f"<tr><td>{escape(record['bench'])}<td>{escape(one['taken_at'])}, "
            f"revision {escape(one['commit'])}, load {one['load_before'][0]} before and "
            f"{one['load_after'][0]} after, restless before {one['restless_batches']} turns"
        )
    return f"<table>{''.join(lines)}</table>"


def bar(row: Record, name: str) -> tuple[str, float, float, float]:
    """A row as plot.bars takes it."""
    return name, row["p50"], min(row["round_p50"]), max(row["round_p50"])


def plots(record: Record) -> Iterator[tuple[str, str]]:
    """(file's name, picture) of a record."""
    found = {row["name"]: row for row in record["results"]}
    if record["bench"] == "attach":
        yield from of_attach(found)
    elif record["bench"] == "storm":
        curves: dict[str, list[tuple[float, float]]] = {}
        for name, row in found.items():
            _, size, who = name.split(".", 2)
            curves.setdefault(who, []).append((float(size), row["p99"]))
        title, x = "p99 of an attach in a storm", "attaches at the same instant"
        yield "storm", plot.lines(title, x, "us", curves, log_x=True, log_y=True)
    elif record["bench"] == "wire":
        for work, title in WORKS.items():
            mine = {
                n.partition(".")[2]: row for n, row in found.items() if n.startswith(f"{work}.")
            }
            if mine:
                unit = next(iter(mine.values()))["unit"]
                yield work, plot.bars(title, unit, [bar(row, who) for who, row in mine.items()])
    elif record["bench"] != "cost":
        units = {row["unit"] for row in found.values()}
        for unit in sorted(units):
            some = [bar(row, name) for name, row in found.items() if row["unit"] == unit]
            label = f"{record['bench']}_{re.sub('[^a-z0-9]', '', unit.lower())}"
            yield label, plot.bars(TITLES.get(record["bench"], ""), unit, some, log=True)
    for index, one in enumerate(record.get("series", [])):
        picture = plot.lines(
            one["title"],
            one["x"],
            one["y"],
            one["lines"],
            log_x=one.get("log_x", False),
            log_y=one.get("log_y", False),
        )
        yield f"{record['bench']}_{index}", picture


def of_attach(found: dict[str, Record]) -> Iterator[tuple[str, str]]:
    """The distribution of all ways, and what had been done before."""
    curves = {
        name: [(value, share) for share, value in enumerate(row["hundredths"])]
        for name, row in found.items()
        if row["unit"] == "us" and not name.endswith("_first") and name != "make.slot"
    }
    title = "How long an attach takes: from the request to where a first packet passes"
    yield "attach", plot.lines(title, "us", "% done", curves, log_x=True, log_y=False)
    rows = [
        (name, *what, f"{number(found[name]['p50'])} us")
        for name, what in CLOCKS.items()
        if name in found
    ]
    if rows:
        yield "clocks", plot.clocks("Where each clock starts and stops", rows)
    boot = ("make.slot", "attach.agent", "classic.pooled", "classic.script")
    costs = [bar(found[name], name) for name in boot if name in found]
    if costs:
        title = "What moved to boot: a slot made ahead, beside what is left for the attach"
        yield "boot", plot.bars(title, "us", costs, log=True)


def ratios(record: Record) -> str:
    """The table of ratios."""
    if not record["ratios"]:
        return ""
    lines = []
    for name, value in record["ratios"].items():
        low, high = record["ratio_rounds"][name]
        noise = low <= 1 <= high
        lines.append(
            f"<tr{' class=noise' if noise else ''}><td>{escape(name)}<td>{number(value)}"
            f"<td>{number(low)}<td>{number(high)}<td>{'noise' if noise else ''}"
        )
    head = "<tr><th>ratio of medians<th>all<th>lowest round<th>highest round<th>"
    return f"<table>{head}{''.join(lines)}</table>"


def rows(record: Record) -> str:
    """The table of rows, folded."""
    columns = ("n", "min", "p50", "p90", "p99", "max")
    lines = [
        f"<tr><td>{escape(row['name'])}<td>{escape(row['unit'])}"
        + "".join(f"<td>{number(row[key])}" for key in columns)
        + f"<td>{row['spread']:.0%}"
        for row in record["results"]
    ]
    head = "<tr><th>row<th>unit" + "".join(f"<th>{key}" for key in columns) + "<th>spread"
    about = escape(json.dumps(record["machine"], indent=1))
    return (
        f"<details><summary>All rows, and the machine's record</summary><table>{head}"
        f"{''.join(lines)}</table><pre>{about}</pre></details>"
    )
