# SPDX-License-Identifier: Apache-2.0
"""As in the system suite: nothing is left behind."""

from tests.system.conftest import adopting_orphans, nothing_left_behind

__all__ = ["adopting_orphans", "nothing_left_behind"]
