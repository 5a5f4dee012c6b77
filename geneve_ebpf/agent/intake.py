# SPDX-License-Identifier: Apache-2.0
"""Whether the node takes anybody in: not while it is cordoned, nor when it is being taken down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError


class Intake:
    """What is said to whoever comes anew, if that is no."""

    def __init__(self, state_directory: Path) -> None:
        self._file = state_directory / "cordoned"
        # Makes the error that says why nothing new is taken in; None: it is.
        self.refuses: Callable[[], GeneveError] | None = None

    def adopt(self) -> None:
        """Go on as the last agent did: called once, at the start."""
        if self._file.exists():
            self.refuses = cordoned

    def check(self) -> None:
        """Raise why nothing is taken in, if so."""
        if self.refuses is not None:
            raise self.refuses()

    @property
    def cordoned(self) -> bool:
        """Are new sandboxes sent away?"""
        return self.refuses is cordoned

    def cordon(self, wanted: bool) -> bool:
        """Send new sandboxes away, or take them in again; kept over restarts.

        False if it was so. Raises STATE_STORE; the queue is the caller's matter.
        """
        if self.refuses is closed or wanted == self.cordoned:
            return False
        try:
            if wanted:
                self._file.touch(mode=0o600)
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            raise GeneveError(
                Code.STATE_STORE,
                f"{self._file}: {error.strerror}",
                hint="free or mend the disk",
            ) from None
        self.refuses = cordoned if wanted else None
        return True

    def close(self) -> None:
        """The node is being taken down: from here on nobody is taken in."""
        self.refuses = closed


def closed() -> GeneveError:
    """What is said to whoever comes while the node is being taken down."""
    return GeneveError(
        Code.NO_SLOT, "the node is being taken down", hint="place the sandbox elsewhere"
    )


def cordoned() -> GeneveError:
    """What is said to whoever comes while the node is cordoned."""
    return GeneveError(
        Code.NODE_CORDONED,
        "the node is cordoned and takes no new sandboxes",
        hint="place it elsewhere; geneve-ebpf node uncordon",
    )
