# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for a kernel in a virtual machine, where all code is some 30 times slower.

Bringing a node up starts a process, which imports netlink libraries. With this plugin
it is forked from the tests' own process, which has the libraries already. Nothing else
differs; nothing compiles, as the programs were kept outside.

A test that is skipped there fails the run, unless the kernel lacks what it is about.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from geneve_ebpf.dataplane import node

# What a kernel may lack: the beginning of the reasons to skip for it.
LACKING = ("this kernel has no TCX",)


_stderr = 2


def _run_forked(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """subprocess.run for `python -m MODULE ...`, without the start of a Python."""
    # Other sources than ours are asked for: that takes another process.
    if "PYTHONPATH" in os.environ:
        return subprocess.run(words, **options)
    assert words[1] == "-m"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os._exit(_be(words[2:], options["preexec_fn"], writer))
    os.close(writer)
    with os.fdopen(reader, errors="replace") as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), said)


def _be(words: Sequence[str], first: Callable[[], None], stdout: int) -> int:
    """Become that module, in a forked child. Its exit status."""
    try:
        first()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(_stderr, 2)
        warnings.simplefilter("ignore")  # pytest's own say "error"
        sys.argv = list(words)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = importlib.import_module(words[0])._main()
        sys.stdout.flush()
        return status
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


class _Watch:
    """Failures are shown as they happen, for the end is far; a skip is one of them."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            text = f"\n{report.nodeid} ({report.when}):\n{report.longreprtext}\n"
            os.write(_stderr, text.encode())
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not reason.startswith(LACKING):
                self.found[report.nodeid] = reason

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.found:
            terminalreporter.section("skipped where it must run", red=True)
            for test, reason in self.found.items():
                terminalreporter.write_line(f"{test}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    _stderr = os.dup(2)  # before pytest captures it
    node.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
        run=_run_forked,
        DEVNULL=subprocess.DEVNULL,
        PIPE=subprocess.PIPE,
    )
    config.pluginmanager.register(_Watch())
