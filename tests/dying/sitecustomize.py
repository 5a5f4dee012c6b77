# SPDX-License-Identifier: Apache-2.0
"""Kills this process at a line of the product that it is about to run, if it is told to.

Python imports this file at its start where the tests have put its directory into
PYTHONPATH. Orders are in the file that GENEVE_EBPF_TESTS_DYING names, and may come
and go while the process runs; `tests/dying/__init__.py` writes them. Nothing in the
product knows of this.
"""

import json
import os
import signal
import sys

_ORDERS = os.environ.get("GENEVE_EBPF_TESTS_DYING", "")
_PRODUCT = "/geneve_ebpf/"
_OF_A_FUNCTION = 1  # inspect.CO_OPTIMIZED; that module takes long to import
TIMES = 3  # that a line in a loop counts


class _Death:
    """Counts the lines that the orders are about; remembers what it has read."""

    def __init__(self):
        self.pid = os.getpid()  # a fork of this process is another's business
        self.stamp = None
        self.orders = {}
        self.lines = 0
        self.visits = {}

    def concerns(self, path):
        """Whether orders have been given for code in this file and this process."""
        try:
            found = os.stat(_ORDERS)
            stamp = found.st_ino, found.st_mtime_ns
            if stamp != self.stamp:
                with open(_ORDERS) as file:
                    self.orders = json.load(file)
                self.stamp, self.lines, self.visits = stamp, 0, {}
        except FileNotFoundError:
            self.stamp, self.orders = None, {}
        return bool(
            self.orders and self.orders["process"] in sys.orig_argv and path in self.orders["files"]
        )

    def on_call(self, frame, event, argument):
        """Every function that is entered comes by here."""
        path = frame.f_code.co_filename
        at = path.rfind(_PRODUCT)
        # A module or a class that is being made does nothing to the kernel.
        if not frame.f_code.co_flags & _OF_A_FUNCTION:
            return None
        if at >= 0 and os.getpid() == self.pid and self.concerns(path[at + len(_PRODUCT) :]):
            return self.on_line
        return None

    def on_line(self, frame, event, argument):
        """Every line of the functions that the orders are about, before it is run."""
        line = frame.f_code, frame.f_lineno
        if event == "line" and os.getpid() == self.pid and self.visits.get(line, 0) < TIMES:
            self.visits[line] = self.visits.get(line, 0) + 1
            self.lines += 1
            orders = self.orders
            if orders.get("record"):
                with open(orders["record"], "a") as file:
                    file.write(f"{frame.f_code.co_filename}:{frame.f_lineno}\n")
            elif orders and self.lines == orders["line"]:
                self.die(frame)
        return self.on_line

    def die(self, frame):
        """Once: who comes after finds no orders."""
        try:
            os.rename(_ORDERS, f"{_ORDERS}.done")
        except FileNotFoundError:
            return
        with open(f"{_ORDERS}.done", "w") as file:
            file.write(f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})")
        if self.orders["parent"]:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


if _ORDERS:
    sys.settrace(_Death().on_call)
