# SPDX-License-Identifier: Apache-2.0
"""The API: which path does what, one file for each subject."""

from geneve_ebpf.agent.api.call import NodeFacts, Shared
from geneve_ebpf.agent.api.dispatch import Api

__all__ = ["Api", "NodeFacts", "Shared"]
