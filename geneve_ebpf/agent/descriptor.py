# SPDX-License-Identifier: Apache-2.0
"""A file descriptor that passes through the agent from one process to another."""

from __future__ import annotations

import os


class Descriptor:
    """Closed when it was sent, or when nobody holds it any more, whatever went wrong."""

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        """Give it back, once."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    __del__ = close
