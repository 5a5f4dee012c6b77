# SPDX-License-Identifier: Apache-2.0
"""tc: clsact qdiscs, a shared filter block, and the BPF filter on either.

pyroute2 0.9 knows neither TCA_INGRESS_BLOCK nor a filter's program id, so its
messages are extended here. A shared block has no interface of its own: it is
addressed with a magic interface index and its number as the parent.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from typing import Any

from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.rtnl import (
    RTM_DELTFILTER,
    RTM_GETTFILTER,
    RTM_NEWTFILTER,
)
from pyroute2.netlink.rtnl.tcmsg import sched_bpf, tcmsg

from geneve_ebpf.host import messages
from geneve_ebpf.host.netlink import RouteSocket

_INGRESS = 0xFFFFFFF2  # parent of an ingress filter on clsact
_BLOCK_IFINDEX = -1  # TCM_IFINDEX_MAGIC_BLOCK, as the signed field has it
_ETH_P_ALL = 0x0300  # 0x0003 in network order
_DIRECT_ACTION = 1

# Our one filter, wherever it hangs: fixed, so that a replace finds it.
PREFERENCE = 6081
HANDLE = 1


class _Options(sched_bpf.options):  # type: ignore[misc]
    nla_map = (
        *sched_bpf.options.nla_map,
        ("TCA_BPF_FLAGS_GEN", "uint32"),
        ("TCA_BPF_TAG", "hex"),
        ("TCA_BPF_ID", "uint32"),
    )
    # pyroute2 prepares a class's table once, and a class below it would take over what was
    # prepared above, if that was used first.
    _nlmsg_base__compiled_nla = False


class _Message(tcmsg):  # type: ignore[misc]
    nla_map = (
        *tcmsg.nla_map,
        ("TCA_PAD", "hex"),
        ("TCA_DUMP_INVISIBLE", "flag"),
        ("TCA_CHAIN", "uint32"),
        ("TCA_HW_OFFLOAD", "uint8"),
        ("TCA_INGRESS_BLOCK", "uint32"),
        ("TCA_EGRESS_BLOCK", "uint32"),
    )
    _nlmsg_base__compiled_nla = False

    @staticmethod
    def get_options(self: Any, *argv: Any, **kwarg: Any) -> Any:
        if self.get_attr("TCA_KIND") == "bpf":
            return _Options
        return tcmsg.get_options(self, *argv, **kwarg)


def _message(**fields: Any) -> _Message:
    message = _Message()
    message["attrs"] = fields.pop("attrs", [])
    for name, value in fields.items():
        message[name] = value
    return message


def add_clsact(
    door: RouteSocket, ifindex: int, *, ingress_block: int = 0, egress_block: int = 0
) -> bool:
    """Give an interface a clsact qdisc, its sides in shared blocks if they are named.

    False if it has one already. Raises OSError otherwise.
    """
    try:
        door.tell_all([messages.clsact(ifindex, ingress_block, egress_block)])
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def remove_clsact(door: RouteSocket, ifindex: int) -> None:
    """Take an interface's clsact qdisc away, filters and all."""
    door.tell_all([messages.no_clsact(ifindex)])


def _shared(door: RouteSocket) -> Iterator[tuple[int, int, int]]:
    """(interface, ingress block, egress block) of every clsact of the namespace.

    Read as bytes: the kernel tells of all interfaces, thousands of slots' among them.
    """
    for body in door.dump_bytes(messages.QDISCS):
        found = messages.attributes(body, 20)  # behind struct tcmsg
        if found.get(messages.TCA_KIND) == b"clsact\0":
            yield messages.interface_of(body), *_blocks(found)


def _blocks(clsact: dict[int, bytes]) -> tuple[int, int]:
    """The shared blocks of a clsact's ingress and egress, by its attributes."""
    return (
        int.from_bytes(clsact.get(messages.TCA_INGRESS_BLOCK, b""), sys.byteorder),
        int.from_bytes(clsact.get(messages.TCA_EGRESS_BLOCK, b""), sys.byteorder),
    )


def shared_blocks(door: RouteSocket, ifindex: int) -> tuple[int, int]:
    """The shared blocks that an interface's ingress and egress are in; 0 if in none."""
    try:
        body = door.get_bytes(messages.clsact_of(ifindex))
    except OSError as error:
        # No such qdisc, another one at its place, no such interface.
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return 0, 0
        raise
    return _blocks(messages.attributes(body, 20))  # behind struct tcmsg


def all_shared_blocks(door: RouteSocket) -> dict[int, tuple[int, int]]:
    """As `shared_blocks`, of every interface of the namespace that has a clsact."""
    return {ifindex: (ingress, egress) for ifindex, ingress, egress in _shared(door)}


def blocks_in_use(door: RouteSocket) -> set[int]:
    """Numbers of all shared blocks of this namespace: whoever names one of them joins it."""
    return {block for _, *blocks in _shared(door) for block in blocks} - {0}


def _filter(door: RouteSocket, ifindex: int, parent: int, program: int, name: str) -> None:
    options = [
        ["TCA_BPF_FD", program],
        ["TCA_BPF_NAME", name],
        ["TCA_BPF_FLAGS", _DIRECT_ACTION],
    ]
    door.tell(
        _message(
            index=ifindex,
            parent=parent,
            handle=HANDLE,
            info=(PREFERENCE << 16) | _ETH_P_ALL,
            attrs=[["TCA_KIND", "bpf"], ["TCA_OPTIONS", {"attrs": options}]],
        ),
        RTM_NEWTFILTER,
        NLM_F_CREATE,
    )


def set_block_program(door: RouteSocket, block: int, program: int, name: str) -> None:
    """Put the program (a descriptor) on every interface of the block, in one swap."""
    _filter(door, _BLOCK_IFINDEX, block, program, name)


def set_ingress_program(door: RouteSocket, ifindex: int, program: int, name: str) -> None:
    """Put the program on one interface's clsact ingress, in one swap."""
    _filter(door, ifindex, _INGRESS, program, name)


def remove_ingress_program(door: RouteSocket, ifindex: int) -> None:
    """Take our filter off an interface's clsact ingress; no other one."""
    try:
        door.tell(
            _message(
                index=ifindex,
                parent=_INGRESS,
                handle=HANDLE,
                info=(PREFERENCE << 16) | _ETH_P_ALL,
                attrs=[["TCA_KIND", "bpf"]],
            ),
            RTM_DELTFILTER,
        )
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise


def _programs(door: RouteSocket, ifindex: int, parent: int) -> Iterator[int]:
    for found in door.dump(_message(index=ifindex, parent=parent), RTM_GETTFILTER):
        options = found.get_attr("TCA_OPTIONS")
        # The kernel also lists the chain's head, which has no program.
        if found.get_attr("TCA_KIND") == "bpf" and options is not None:
            program = options.get_attr("TCA_BPF_ID")
            if program is not None:
                yield program


def block_programs(door: RouteSocket, block: int) -> list[int]:
    """Program ids on a shared block, in the order they run. [] if there is no such block."""
    try:
        return list(_programs(door, _BLOCK_IFINDEX, block))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return []
        raise


def ingress_programs(door: RouteSocket, ifindex: int) -> list[int]:
    """Program ids on an interface's clsact ingress. [] if it has none."""
    try:
        return list(_programs(door, ifindex, _INGRESS))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return []
        raise
