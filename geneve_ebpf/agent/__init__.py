# SPDX-License-Identifier: Apache-2.0
"""The daemon of a node: its socket, its slot pool, its hold on desired and present state."""
