# SPDX-License-Identifier: Apache-2.0
"""The classic ways to attach, as the bench times them, really attach."""

from __future__ import annotations

import pytest

from bench import classic
from bench.testbed import tunnel_kind


@pytest.mark.parametrize("kind", ["vxlan", pytest.param("geneve", marks=pytest.mark.kernel)])
def test_a_ping_passes_after_each_form_of_the_classic_way(kind: str) -> None:
    """There and back through a tunnel device of either kind, where the kernel has it."""
    if kind == "geneve" and tunnel_kind() != kind:
        pytest.skip("this kernel has no geneve device")
    with classic.classic_host(kind) as host:
        for form in classic.FORMS:
            classic.verify(host, form)
