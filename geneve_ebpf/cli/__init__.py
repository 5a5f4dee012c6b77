# SPDX-License-Identifier: Apache-2.0
"""The `geneve-ebpf` command: parse, ask the agent once, print. One file per noun."""

from __future__ import annotations


def main() -> None:
    """Run the command on `sys.argv` and leave with its exit status."""
    from geneve_ebpf.cli.app import run

    raise SystemExit(run())
