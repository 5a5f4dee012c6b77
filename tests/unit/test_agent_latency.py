# SPDX-License-Identifier: Apache-2.0
"""Attach durations pass from one process to another through a file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from geneve_ebpf.agent import latency
from geneve_ebpf.errors import GeneveError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "latency"


def by_name(path):
    return {(one.stage, one.result): one for one in latency.read(path)}


def test_a_duration_is_in_the_bucket_of_its_bound(path):
    """A bound belongs to its bucket, as Prometheus' `le` has it."""
    recorder = latency.Recorder(path)
    recorder.record(5_000, 5_001, 1_000_000_000, 1_000_000_001, ok=True)
    recorder.close()

    found = by_name(path)
    assert found["wait", "ok"].counts[:2] == (1, 0)
    assert found["validate", "ok"].counts[:2] == (0, 1)
    assert found["write", "ok"].counts[-2:] == (1, 0)
    assert found["total", "ok"].counts[-2:] == (0, 1)
    assert found["total", "ok"].sum_ns == 1_000_000_001
    assert sum(found["total", "error"].counts) == 0


def test_only_who_settles_is_counted_there(path):
    recorder = latency.Recorder(path)
    recorder.record(1, 2, 3, 6, ok=True)
    recorder.record(1, 2, 3, 10_006, 10_000, ok=True)
    recorder.close()

    found = by_name(path)
    assert sum(found["total", "ok"].counts) == 2
    assert (sum(found["settle", "ok"].counts), found["settle", "ok"].sum_ns) == (1, 10_000)


def test_another_process_reads_while_this_one_writes(path):
    recorder = latency.Recorder(path)
    recorder.record(1, 2, 3, 6, ok=False)
    script = (
        "import sys, pathlib; from geneve_ebpf.agent import latency;"
        "print([h.sum_ns for h in latency.read(pathlib.Path(sys.argv[1])) if h.result == 'error'])"
    )

    out = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    ).stdout
    recorder.close()

    assert out.strip() == "[1, 2, 3, 6, 0]"


def test_the_next_agent_counts_on(path):
    for _ in range(2):
        recorder = latency.Recorder(path)
        recorder.record(1, 1, 1, 3, ok=True)
        recorder.close()

    assert by_name(path)["total", "ok"].sum_ns == 6


def test_no_file_is_no_attach_yet(path):
    assert all(sum(one.counts) == 0 for one in latency.read(path))
    assert len(latency.read(path)) == len(latency.STAGES) * len(latency.RESULTS)


def test_a_file_of_another_make_is_refused_by_readers_and_replaced_by_the_agent(path):
    path.write_bytes(b"something else")

    with pytest.raises(GeneveError):
        latency.read(path)
    latency.Recorder(path).close()

    assert len(latency.read(path)) == len(latency.STAGES) * len(latency.RESULTS)
