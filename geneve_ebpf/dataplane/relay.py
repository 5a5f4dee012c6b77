# SPDX-License-Identifier: Apache-2.0
"""The relay: a veth pair in the node's namespace that merges TCP anew for host taps.

What comes merged from an uplink keeps the mark of a tunnel, and a tap would cut it up.
The near end cuts it up first, as it segments nothing in hardware, and the far end's GRO
merges the segments without that mark; what comes in segments is merged there too. The
pair has no address and never resolves one. The near end hangs in the sandboxes' blocks,
the far end has relay_rx, and their guard as well: nothing of the host's enters or leaves.

It is made when the node comes up, before there is a slot, and stays: a flow keeps its way.
"""

from __future__ import annotations

import contextlib
import errno
import os

from geneve_ebpf.abi import NodeState
from geneve_ebpf.host import links, tc
from geneve_ebpf.host.netlink import IPRoute, NetlinkError, RouteSocket
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.maps import SharedArray
from geneve_ebpf.loader.pins import Pins

NEAR, FAR = "gnv-relay0", "gnv-relay1"
PROGRAM = "relay_rx"
_MTU = 65535  # a veth drops what is larger, uncounted
_PATIENCE = 10.0  # seconds until it transmits
_NEAR_SIDE = links.Features(off=links.TSO)
_FAR_SIDE = links.Features(on=("rx-gro",))


def keep(ip: IPRoute, door: RouteSocket, pins: Pins, block: int) -> str:
    """Make the pair or mend it, with the program as it is now, and tell uplink_rx where it is.

    block: the sandboxes' ingress block; the next number is the one of their egress. Returns
    why there is none, and host taps get TCP as it comes; "" if there is one.
    """
    try:
        near = _find(ip, door, block)
        if not near:
            _tell_programs(pins, 0)  # meanwhile
            near = _make(ip, door, block)
        _furnish(ip, door, pins)
        for name in (FAR, NEAR):  # not before they are closed
            links.set_up(ip, links.index_of(ip, name))
        links.wait_transmits(door, near, _PATIENCE)
    except (OSError, NetlinkError) as error:
        _tell_programs(pins, 0)
        with contextlib.suppress(NetlinkError):
            remove(ip)
        return f"{NEAR} cannot be made: {error}"
    _tell_programs(pins, near)
    return ""


def remove(ip: IPRoute) -> None:
    """Remove the pair, if there is one."""
    for name in (NEAR, FAR):  # one goes with the other, unless somebody else made them
        index = links.index_of(ip, name)
        if index:
            links.remove(ip, index)


def _find(ip: IPRoute, door: RouteSocket, block: int) -> int:
    """The near end's index, if both are there and closed as we close them; else 0."""
    near, far = links.describe(ip, NEAR), links.describe(ip, FAR)
    if near is None or far is None or near.kind != "veth" or near.parent != FAR:
        return 0
    return near.index if _is_closed(door, near.index, far.index, block) else 0


def _is_closed(door: RouteSocket, near: int, far: int, block: int) -> bool:
    found = [tc.shared_blocks(door, end) for end in (near, far)]
    return found == [(block, block + 1), (0, block + 1)]


def _make(ip: IPRoute, door: RouteSocket, block: int) -> int:
    remove(ip)
    near = links.make_veth(ip, NEAR, {"ifname": FAR}, mtu=_MTU, queues=os.cpu_count() or 1)
    far = links.index_of(ip, FAR)
    for index, name in ((near, NEAR), (far, FAR)):
        links.silence(door, index, name)
    tc.add_clsact(door, near, ingress_block=block, egress_block=block + 1)
    tc.add_clsact(door, far, egress_block=block + 1)
    if not _is_closed(door, near, far, block):
        raise OSError(errno.EBUSY, f"something gave {NEAR} or {FAR} a clsact of its own")
    return near


def _furnish(ip: IPRoute, door: RouteSocket, pins: Pins) -> None:
    """The program and the offloads, whatever they are now."""
    far = links.index_of(ip, FAR)
    program = bpf.open_pin(pins.program(PROGRAM))
    try:
        wanted = [bpf.program_info(program).id]
        if tc.ingress_programs(door, far) != wanted:
            tc.set_ingress_program(door, far, program, PROGRAM)
    finally:
        os.close(program)
    found = tc.ingress_programs(door, far)
    if found != wanted:
        raise OSError(errno.EBUSY, f"{FAR} holds programs {found}, not only ours {wanted}")
    links.set_features(door, NEAR, _NEAR_SIDE)
    links.set_features(door, FAR, _FAR_SIDE)


def _tell_programs(pins: Pins, near: int) -> None:
    state: SharedArray[NodeState] = SharedArray(pins.map("node_state"), NodeState, writable=True)
    try:
        state.row(0).relay = near
    finally:
        state.close()
