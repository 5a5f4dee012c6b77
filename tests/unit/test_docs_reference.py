# SPDX-License-Identifier: Apache-2.0
"""The pages about the command and the metrics say what the code says."""

from __future__ import annotations

import re

import pytest

from geneve_ebpf.exporter.metrics import METRICS
from tests.reference import DOCS, PAGES, filled


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


def test_alerts_name_metrics_that_exist():
    """An alert on a metric that nobody exposes never fires."""
    alerts = (DOCS / "metrics.md").read_text().partition("```yaml")[2]
    known = {metric.name for metric in METRICS}

    used = {name.removesuffix("_bucket") for name in re.findall(r"geneve_ebpf_\w+", alerts)}
    assert used
    assert used <= known
