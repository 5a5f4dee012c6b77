# SPDX-License-Identifier: Apache-2.0
"""The simulator of storms, where the answer can be worked out by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import SCHEMA
from bench.sim import measured
from bench.sim.model import Node, Policy, Way
from bench.sim.page import plot
from bench.testbed import BenchError

ROOT = Path(__file__).parents[2]
PATIENT = Policy(waiting_max=1000, deadline=1e9)


def always(seconds):
    return lambda: seconds


def run(way, callers, policy=PATIENT, cpus=2, within=0.0):
    return Node(way, policy, cpus, seed=1).run(callers, within)


def test_one_lock_serves_one_after_the_other():
    """However many CPUs there are."""
    outcome = run(Way("x", always(0), always(3)), 4, cpus=8)

    assert outcome.done == pytest.approx([3, 6, 9, 12])
    assert (outcome.percentile(0.5), outcome.percentile(0.99)) == (6, 12)
    assert outcome.ended == 12


def test_what_needs_no_lock_shares_the_cpus():
    """Six of 2 s each on three CPUs: by slices, so that all are done at about 4 s."""
    outcome = run(Way("x", always(2), always(0)), 6, cpus=3)

    assert min(outcome.done) > 3.9
    assert outcome.ended == pytest.approx(4)


def test_who_holds_the_lock_needs_a_cpu_and_goes_first():
    """On one CPU nothing overlaps. The first to get the lock waits for no slice of the other."""
    outcome = run(Way("x", always(0.003), always(3)), 2, cpus=1)

    assert outcome.done == pytest.approx([3.003 + 0.003, 6.006])
    assert outcome.ended == pytest.approx(6.006)


def pool_of(slots, refill):
    return Way("x", always(0), always(0), in_agent=True, pool=slots, refill=always(refill))


def test_beyond_the_pool_an_attach_is_as_fast_as_the_refill():
    """Two are there, the others come one every 10 s."""
    outcome = run(pool_of(2, 10), 5)

    assert outcome.done == pytest.approx([0, 0, 10, 20, 30])
    assert outcome.longest_queue == 3


def test_a_full_queue_refuses_and_a_deadline_expires():
    """One slot; two may wait, no longer than 15 s: the second's would come after 20."""
    outcome = run(pool_of(1, 10), 5, Policy(waiting_max=2, deadline=15))

    assert outcome.done == pytest.approx([0, 10])
    assert (outcome.refused, outcome.expired) == (2, 1)


def test_who_is_refused_may_come_back_and_is_not_counted_twice():
    """The queue drains meanwhile; times count from the first request."""
    outcome = run(pool_of(1, 1), 3, Policy(waiting_max=1, deadline=1e9, retries=5))

    assert (len(outcome.done), outcome.refused, outcome.expired) == (3, 0, 0)
    assert outcome.asked_again >= 1
    assert max(outcome.done) >= 2


def test_arrivals_spread_out_do_not_wait():
    """Ten in a thousand seconds, each a millisecond: the median waits for nobody."""
    outcome = run(Way("x", always(0), always(0.001)), 10, within=1000.0)

    assert outcome.percentile(0.5) == pytest.approx(0.001)


NAMES = (
    "attach.agent_c_one_cpu", "socket.floor_one_cpu", "socket.floor", "make.slot",
    "classic.script", "classic.netlink_raw", "classic.pooled", "classic.pooled_raw",
)  # fmt: skip


def record(bench, rows, path):
    """A record of rows that always took the same, in us."""
    results = [
        {"name": name, "unit": "us", "n": 9}
        | dict.fromkeys(("min", "p50", "p90", "p99", "max"), value)
        for name, value in rows.items()
    ]
    about = {"cores": 2, "cpu": "x", "kernel": "6.18", "commit": "r"}
    text = {"schema": SCHEMA, "bench": bench, "machine": about, "results": results}
    path.write_text(json.dumps(text))
    return path


def test_quantiles_are_joined_by_straight_lines():
    points = (0.0, 10.0, 20.0, 30.0, 130.0)

    found = [measured.at(points, share) for share in (0, 0.25, 0.5, 0.9, 0.995, 1)]
    assert found == pytest.approx([0, 5, 10, 20, 80, 130])


def test_the_ways_are_made_of_what_was_measured(tmp_path):
    """What a library or a shell adds to the kernel's time is the caller's; nothing is below 0."""
    times = dict(zip(NAMES, (40, 10, 30, 2000, 25_000, 3000, 700, 300), strict=True))
    script, pooled, ours = measured.ways(
        measured.read(record("attach", times, tmp_path / "a.json"), "attach"), 64, 1
    )

    micro = {
        way.name: [round(draw() * 1e6) for draw in (way.caller, way.served)]
        for way in (script, pooled, ours)
    }
    assert micro == {"script": [22_030, 3000], "pooled": [430, 300], "ours": [30, 30]}
    assert [round(way.refill() * 1e6) for way in (pooled, ours)] == [2700, 2000]
    assert (script.pool, pooled.pool, ours.pool) == (0, 64, 64)


def test_a_record_without_a_row_names_it(tmp_path):
    path = record("attach", {"classic.script": 1}, tmp_path / "a.json")

    with pytest.raises(BenchError, match=r"a\.json has no row attach\.agent_c_one_cpu"):
        measured.ways(measured.read(path, "attach"), 64, 1)


def sim(*words):
    return subprocess.run(
        [sys.executable, "-m", "bench", "sim", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_prints_checks_and_draws(tmp_path):
    """One caller alone takes what its parts take, and the check says how far off that is."""
    times = dict(zip(NAMES, (40, 10, 30, 2000, 25_000, 3000, 700, 300), strict=True))
    attach = record("attach", times, tmp_path / "attach.json")
    storms = {"storm.1.floor": 30, "storm.1.ours": 60, "storm.1.pooled": 1460}
    storm = record("storm", storms, tmp_path / "storm.json")
    page = tmp_path / "page.html"

    done = sim("--measured", attach, "--storm", storm, "--most", 10, "--page", page)

    assert done.returncode == 0, done.stderr
    check = {
        line.split()[0]: line.split()[1:] for line in done.stdout.split("\n\n")[1].splitlines()
    }
    assert check["ours"] == ["1", "0.06", "0.06", "0.06", "0.06", "1.00", "1.00"]
    assert check["pooled"][5:] == ["0.50", "0.50"]
    html = page.read_text()
    assert html.count("<svg") == html.count("</svg>") == 3
    assert not re.search(r"nan|inf\b", html)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no record of: script/bench attach --json"),
        ('{"schema": "other"}', "is no record of: script/bench attach --json"),
    ],
)
def test_a_file_that_is_no_record_is_refused_in_a_line(tmp_path, content, said):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)

    done = sim("--measured", path)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plot_of_nothing_says_so():
    assert plot("times", "x", "y", {"ours": [(10, 0.0)]}) == "<p>times: nothing to show</p>"
