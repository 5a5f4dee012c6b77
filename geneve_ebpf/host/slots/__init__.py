# SPDX-License-Identifier: Apache-2.0
"""Slots: places for sandboxes, made before anybody knows whose they will be.

All the netlink of a sandbox's life happens here, before and after it lives.
"""

from geneve_ebpf.host.slots.adopting import clear_half_made, resize
from geneve_ebpf.host.slots.brought import BroughtKind, find, give_back
from geneve_ebpf.host.slots.destroying import cut_off, cut_off_all, drop, gone, wait_gone
from geneve_ebpf.host.slots.given import GivenKind, refuse_ours
from geneve_ebpf.host.slots.kinds import NAMESPACE, Draft, Kind
from geneve_ebpf.host.slots.making import AT_ONCE, make, make_many
from geneve_ebpf.host.slots.native import number
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.host.slots.taps import HostTapKind, TapKind, beside_tap
from geneve_ebpf.host.slots.watching import fault, faults

__all__ = [
    "AT_ONCE",
    "NAMESPACE",
    "BroughtKind",
    "Draft",
    "GivenKind",
    "HostTapKind",
    "Kind",
    "Place",
    "TapKind",
    "beside_tap",
    "clear_half_made",
    "cut_off",
    "cut_off_all",
    "drop",
    "fault",
    "faults",
    "find",
    "give_back",
    "gone",
    "make",
    "make_many",
    "number",
    "refuse_ours",
    "resize",
    "wait_gone",
]
