# SPDX-License-Identifier: Apache-2.0
"""Whether a slot's host side is as it was made, or others have laid hands on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from geneve_ebpf.host import links, tc
from geneve_ebpf.host.netlink import RouteSocket
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import host_interface


def fault(door: RouteSocket, place: Place, index: int, ifindex: int) -> str | None:
    """What is wrong with a slot's host side: "" if nothing, None if it is gone.

    ifindex: what it was made with. The door is in the node's namespace.
    """
    return _fault(door, place, index, ifindex, None)


def faults(
    door: RouteSocket, place: Place, made: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, str | None]]:
    """As `fault`, of many slots, each with its index, which is told with what is found."""
    blocks = tc.all_shared_blocks(door)
    for index, ifindex in made:
        yield index, _fault(door, place, index, ifindex, blocks.get(ifindex, (0, 0)))


def _fault(
    door: RouteSocket, place: Place, index: int, ifindex: int, blocks: tuple[int, int] | None
) -> str | None:
    """blocks: those that it is in, if they have been asked for."""
    name = host_interface(index)
    try:
        if links.index_by_name(door, name) != ifindex:
            return None
        if not links.is_up(door, name):
            return f"{name} is down"
    except OSError:
        return None
    if blocks is None:
        blocks = tc.shared_blocks(door, ifindex)
    if blocks != (place.block, place.block + 1):
        return f"{name} has lost the node's programs: its clsact was changed"
    return ""
