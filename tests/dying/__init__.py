# SPDX-License-Identifier: Apache-2.0
"""Have an agent, or a child of it, killed at the N-th line that it runs of some files.

A kill at every line is a kill between any two things that the process does to the
kernel. The process is traced from within (`sitecustomize.py` here), so that the
product needs no fault points and is what users run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

_SITE = Path(__file__).parent
# "1": all of them; "3/8": every eighth from the third, so that eight runs make one in pieces.
EVERY_LINE = os.environ.get("GENEVE_EBPF_TESTS_EVERY_LINE", "")

AGENT = "agent"
SLOT_PROCESS = "geneve_ebpf.agent.slot_process"
NODE_SETUP = "geneve_ebpf.dataplane.node_setup"


class Killer:
    """Gives orders to all processes that are started within `obeyed`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._orders = directory / "orders"
        self._record = directory / "lines"
        self._done = directory / "orders.done"

    @contextlib.contextmanager
    def obeyed(self) -> Iterator[None]:
        """What is started meanwhile can be killed later."""
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "GENEVE_EBPF_TESTS_DYING")}
        os.environ |= {"PYTHONPATH": str(_SITE), "GENEVE_EBPF_TESTS_DYING": str(self._orders)}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
            for path in (self._orders, self._record, self._done):
                path.unlink(missing_ok=True)
            self._orders.parent.rmdir()

    def _give(self, **orders: object) -> None:
        self._done.unlink(missing_ok=True)
        draft = self._orders.with_suffix(".new")
        draft.write_text(json.dumps(orders))
        draft.replace(self._orders)

    @contextlib.contextmanager
    def recording(self, process: str, files: tuple[str, ...]) -> Iterator[list[str]]:
        """The lines that are run meanwhile, in the list when it is over."""
        self._record.write_text("")
        lines: list[str] = []
        self._give(process=process, files=files, record=str(self._record))
        try:
            yield lines
        finally:
            self._orders.unlink()
            lines += self._record.read_text().splitlines()

    @contextlib.contextmanager
    def armed(
        self, process: str, files: tuple[str, ...], line: int, *, parent: bool = False
    ) -> Iterator[None]:
        """
        Whoever runs the `line`-th line of the files meanwhile dies before it; `struck` tells.

        parent: the process's parent dies first, at the same line.
        """
        self._give(process=process, files=files, line=line, parent=parent)
        try:
            yield
        finally:
            self._orders.unlink(missing_ok=True)

    @property
    def struck(self) -> bool:
        """Whether somebody died of the last orders."""
        return self._done.exists()

    @property
    def where(self) -> str:
        """The line at which the last one died; "" if nobody did."""
        with contextlib.suppress(FileNotFoundError):
            return self._done.read_text()
        return ""


def chosen(count: int, sample: int) -> list[int]:
    """Every line of `count`, if that is asked for, or a few that are far apart."""
    if EVERY_LINE:
        piece, pieces = ([*map(int, EVERY_LINE.split("/")), 1])[:2]
        return list(range(piece, count + 1, pieces))
    return sorted({1 + (count - 1) * step // max(1, sample - 1) for step in range(sample)})
