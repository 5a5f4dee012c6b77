# SPDX-License-Identifier: Apache-2.0
"""The only code that touches BPF: compile, load, pin, maps and hooks."""
