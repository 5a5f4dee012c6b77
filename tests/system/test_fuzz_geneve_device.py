# SPDX-License-Identifier: Apache-2.0
"""The fuzzer's frames and Linux's own geneve device: what is decapsulated, and what comes out."""

from __future__ import annotations

import pytest

from tests.fuzz import geneve_device

pytestmark = pytest.mark.kernel

FRAMES = 600  # over each underlay


def test_the_kernels_device_decapsulates_what_the_model_does():
    """Except where docs/fuzzing.md says that it does not."""
    try:
        tally = geneve_device.compare(FRAMES, seed=1)
    except RuntimeError as error:
        if "not supported" in str(error) or "Unknown device type" in str(error):
            pytest.skip("this kernel has no geneve device")
        raise
    print(tally)

    assert tally.mismatches == []
    assert tally.delivered > FRAMES / 4
    assert tally.dropped > FRAMES / 20
    assert set(tally.differing) <= set(geneve_device.DIFFERENCES)
    assert {"geneve_control", "geneve_critical", "pending checksum"} <= set(tally.differing)
