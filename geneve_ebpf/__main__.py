# SPDX-License-Identifier: Apache-2.0
"""`python -m geneve_ebpf`: the `geneve-ebpf` command."""

from __future__ import annotations

from geneve_ebpf.cli import main

main()
