# SPDX-License-Identifier: Apache-2.0
"""How long to wait for what should happen: 1, or more where the machine is known to be slow.

An emulated processor takes some 30 times longer for everything; a test that waits a
second for what takes a millisecond must not fail there. No test may pass or fail by
how long something took.
"""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("GENEVE_EBPF_TESTS_PATIENCE", "1"))
