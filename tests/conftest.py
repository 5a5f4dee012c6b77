# SPDX-License-Identifier: Apache-2.0
"""The programs are compiled once for all tests, in build/kept of the checkout."""

from __future__ import annotations

import os

import pytest

from tests.compiled import KEPT, keep_programs
from tests.patience import EXPENDABLE

os.environ["CACHE_DIRECTORY"] = str(KEPT)


@pytest.fixture(scope="session")
def kept_programs() -> None:
    """What is brought up from now on needs no compiler."""
    if os.geteuid() == 0 and not EXPENDABLE:  # that machine finds them there
        keep_programs()
