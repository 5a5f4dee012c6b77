# SPDX-License-Identifier: Apache-2.0
"""No generation is given twice by a node, though its maps are new."""

from __future__ import annotations

from geneve_ebpf.agent.service import GENERATIONS, first_generation

NOW = 1_800_000_000.9


def test_new_maps_count_on_above_all_that_was_given():
    """By the clock; by the file where the clock went back; what the file lacks is left out."""
    first = first_generation(NOW, 0)
    given = first + 1000

    assert first_generation(NOW + 1, given) > given
    assert first_generation(NOW + 1, 0) > given
    assert first_generation(1.0, given) > given + 1000
    assert first_generation(1.0, 0) == GENERATIONS


def test_a_generation_fits_into_a_double():
    """As which many readers of JSON take a number; for two hundred years."""
    assert first_generation(NOW + 200 * 365 * 86400, 0) < 1 << 53
