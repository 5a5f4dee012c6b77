# SPDX-License-Identifier: Apache-2.0
"""What the tests may ask of the machine: its time, and its life.

PATIENCE is how long to wait for what should happen: 1, or more where the machine is
known to be slow.

An emulated processor takes some 30 times longer for everything; a test that waits a
second for what takes a millisecond must not fail there. No test may pass or fail by
how long something took.
"""

from __future__ import annotations

import os
from pathlib import Path

PATIENCE = float(os.environ.get("GENEVE_EBPF_TESTS_PATIENCE", "1"))

# Whether a test may risk this kernel's life. Only one that tests/vm/boot.py booted says
# so, on its command line: elsewhere what a kernel may panic at is not run.
EXPENDABLE = "geneve_ebpf.expendable=1" in Path("/proc/cmdline").read_text().split()
