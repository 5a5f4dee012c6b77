# SPDX-License-Identifier: Apache-2.0
"""The pages about the command and the metrics, and the man page, say what the code says."""

from __future__ import annotations

import re
import subprocess

import pytest

from geneve_ebpf.exporter.metrics import METRICS
from tests.reference import DOCS, MAN_PAGE, PAGES, filled, man_page


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_code_makes_of_it(page):
    """Run `python -m tests.reference` after a change of help texts or metrics."""
    assert (DOCS / page).read_text() == filled(page)


def test_metrics_are_named_as_prometheus_wants_it():
    """Counters end in _total and nothing else does; every name is ours; none stands twice."""
    names = [metric.name for metric in METRICS]

    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"geneve_ebpf_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.text.endswith(".")


def test_the_man_page_is_what_the_code_makes_of_it():
    """Run `python -m tests.reference` after a change of commands or help texts."""
    assert MAN_PAGE.read_text() == man_page()


def test_man_reads_the_page_without_a_complaint():
    """groff says what it does not know, with --warnings."""
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(MAN_PAGE)],
        env={"PATH": "/usr/bin:/bin", "MANROFFSEQ": "", "MANWIDTH": "100", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "geneve-ebpf attach" in done.stdout
