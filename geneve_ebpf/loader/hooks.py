# SPDX-License-Identifier: Apache-2.0
"""Where the programs hang: sandbox_tx and sandbox_guard on shared blocks, uplink_rx on uplinks.

Sandbox interfaces share one tc block for what they send and one for what
enters them, so that one filter serves all of them and one replace swaps it
under all of them. A block would vanish with its last interface and the next
one would be open; an anchor, a veth pair of our own that never comes up, holds
both. The anchor is also what underlay route look-ups are "received on": the FIB
helper wants an interface that forwards, in either family, and so no other one
has to; and where the uplinks are in a VRF, so is the anchor, for its table.

An uplink is one device: a TCX link where the kernel has TCX (ordered beside
other users, pinned, swapped in microseconds), else a filter on clsact.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import links, tc
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import MTU_MIN

ANCHOR = "gnv-anchor"
_FIRST_BLOCK = 6081
# Link types (ARPHRD_*): frames that begin with an Ethernet header, as loopback's
# do too, and those that begin with the IP packet (tun, WireGuard; raw IP modems).
_ETHERNET, _LOOPBACK, _BARE_IP = 1, 772, (65534, 519)
_MASTERS = ("bond", "bridge", "team")


def other_node(ip: IPRoute, run_directory: Path) -> str:
    """The run directory of another node that has this network namespace; "" if none has.

    Two nodes in one namespace would take each other's interfaces and programs
    away. The anchor's alias names its node.
    """
    anchor = links.index_of(ip, ANCHOR)
    owner = links.alias_of(ip, anchor) if anchor else ""
    return owner if owner != str(run_directory) and owner and Path(owner).exists() else ""


def hang_blocks(ip: IPRoute, door: RouteSocket, pins: Pins, vrf: str = "") -> tuple[int, int]:
    """Make anchor and blocks, or find them, and put sandbox_tx and sandbox_guard on them.

    vrf: the one that the underlay's routes are in, "" if in none. Returns
    (number of the ingress block, the anchor's interface index); the egress
    block has the next number. Works in the thread's network namespace, which no
    other node has.
    """
    anchor = links.index_of(ip, ANCHOR)
    block, egress = tc.shared_blocks(door, anchor) if anchor else (0, 0)
    if not block or egress != block + 1:
        if any(re.fullmatch(r"gnv\d+", name) for name in os.listdir("/proc/sys/net/ipv4/conf")):
            raise GeneveError(
                Code.NODE_SETUP,
                f"{ANCHOR} or its blocks were removed while slots are up",
                hint="a new program would not reach those slots: geneve-ebpf node down",
            )
        if anchor:  # half made: no slot can be in its block yet
            links.remove(ip, anchor)
        taken = tc.blocks_in_use(door)
        block = next(n for n in range(_FIRST_BLOCK, 1 << 20, 2) if not taken & {n, n + 1})
        anchor = links.make_veth(ip, ANCHOR, {"ifname": f"{ANCHOR}-peer"}, mtu=1500)
        links.silence(door, anchor, ANCHOR)
        links.disable_ipv6(f"{ANCHOR}-peer")
        tc.add_clsact(door, anchor, ingress_block=block, egress_block=block + 1)
    links.set_alias(ip, anchor, str(pins.root.parent))
    follow_vrf(ip, vrf)
    for family in ("ipv4", "ipv6"):
        forwarding = Path(f"/proc/sys/net/{family}/conf/{ANCHOR}/forwarding")
        if forwarding.exists():  # a kernel may have been started without IPv6
            forwarding.write_text("1")
    _set_block(door, pins, block, "sandbox_tx")
    _set_block(door, pins, block + 1, "sandbox_guard")
    return block, anchor


def _set_block(door: RouteSocket, pins: Pins, block: int, name: str) -> None:
    fd = bpf.open_pin(pins.program(name))
    try:
        tc.set_block_program(door, block, fd, name)
        wanted = bpf.program_info(fd).id
    finally:
        os.close(fd)
    found = tc.block_programs(door, block)
    if found != [wanted]:
        raise GeneveError(
            Code.NODE_SETUP,
            f"the shared block {block} holds programs {found}, not only ours ({wanted})",
            hint="another tool uses the block: geneve-ebpf node down, then start again",
        )


def drop_blocks(ip: IPRoute) -> None:
    """Remove the anchor; a block goes with the last interface in it."""
    anchor = links.index_of(ip, ANCHOR)
    if anchor:
        links.remove(ip, anchor)


def follow_vrf(ip: IPRoute, vrf: str) -> None:
    """Have the anchor, and with it route look-ups, in this VRF; "" for none."""
    anchor = links.describe(ip, ANCHOR)
    if anchor is None or anchor.master == vrf:
        return
    master = links.index_of(ip, vrf) if vrf else 0
    if master or not vrf:  # it may have gone meanwhile
        links.set_master(ip, anchor.index, master)


def find_uplink(ip: IPRoute, interface: str) -> links.Link:
    """The interface. Raises GeneveError NODE_SETUP if there is none or it cannot be an uplink."""
    found = links.describe(ip, interface)
    if found is None:
        raise _unfit(
            f"there is no uplink {interface}", "name an interface of the node's namespace: ip link"
        )
    if found.hardware == _LOOPBACK:
        raise _unfit(
            f"uplink {interface} is the loopback interface",
            "name those that lead to the other nodes; the VTEP's address may be on it",
        )
    if found.kind == "vrf":
        raise _unfit(
            f"uplink {interface} is a VRF",
            "name the interfaces in it; the VRF is found by them",
        )
    if found.master_kind in _MASTERS:
        raise _unfit(
            f"uplink {interface} is a port of the {found.master_kind} {found.master}",
            f"name {found.master} instead",
        )
    if found.mtu < MTU_MIN:
        raise _unfit(
            f"uplink {interface} has an MTU of {found.mtu}", f"give it {MTU_MIN} bytes at least"
        )
    _program_for(found)
    return found


def _unfit(message: str, hint: str) -> GeneveError:
    return GeneveError(Code.NODE_SETUP, message, hint=hint, field="uplinks")


def _program_for(uplink: links.Link) -> str:
    if uplink.hardware == _ETHERNET:
        return "uplink_rx"
    if uplink.hardware in _BARE_IP:
        return "uplink_rx_l3"
    raise _unfit(
        f"uplink {uplink.name} has link type {uplink.hardware}, neither Ethernet nor bare IP",
        "name an interface below or above it; docs/compatibility.md lists what can be an uplink",
    )


def vrf_of(uplinks: Iterable[links.Link]) -> str:
    """The VRF that all of them are in; "" if they are in none. Raises NODE_SETUP if they differ."""
    found = {one.master if one.master_kind == "vrf" else "" for one in uplinks}
    if len(found) > 1:
        raise _unfit(
            f"the uplinks are in several VRFs: {', '.join(sorted(found)) or 'none'}",
            "put all of them into one: the underlay's routes are looked up in its table",
        )
    return found.pop() if found else ""


def hang_uplink(ip: IPRoute, door: RouteSocket, pins: Pins, interface: str, *, tcx: bool) -> None:
    """Put uplink_rx on one interface, or swap it there; other programs stay.

    Raises GeneveError NODE_SETUP if there is no such interface, or none that can be.
    """
    found = find_uplink(ip, interface)
    ifindex, name = found.index, _program_for(found)
    program = bpf.open_pin(pins.program(name))
    try:
        if tcx:
            _set_link(pins.uplink(interface), program, ifindex)
        else:
            note, made = _clsact_note(pins, interface), f"made {ifindex}"
            # Before the hook is there: whoever takes it away finds it by the note.
            if tc.add_clsact(door, ifindex):
                note.write_text(made)
            elif not note.exists() or note.read_text() != made:
                note.write_text("joined")
            tc.set_ingress_program(door, ifindex, program, name)
    finally:
        os.close(program)


def _clsact_note(pins: Pins, interface: str) -> Path:
    """Says that our hook is on the interface's clsact, and whether we made that qdisc."""
    # bpffs takes no plain files.
    return pins.root.parent / f"clsact-{interface}"


def _set_link(pinned: Path, program: int, ifindex: int) -> None:
    if pinned.exists():
        link = bpf.open_pin(pinned)
        try:
            if link_ifindex(link) == ifindex:
                bpf.call_packed(bpf.LINK_UPDATE, "<IIII", link, program, 0, 0)
                return
        except OSError as error:
            if error.errno != errno.ENOLINK:
                raise
        finally:
            os.close(link)
        pinned.unlink()  # its interface is gone; this one only has its name
    attr = bpf.create_attr("<IIII32x", program, ifindex, bpf.TCX_INGRESS, 0)
    link = bpf.call(bpf.LINK_CREATE, attr)
    try:
        bpf.pin(link, pinned)
    finally:
        os.close(link)


def link_ifindex(link: int) -> int:
    """The interface a TCX link hangs on; 0 when the interface is gone."""
    # struct bpf_link_info: type, id, prog_id, pad, tcx.ifindex
    return int(struct.unpack_from("<I", bpf.object_info(link, 64), 16)[0])


def has_tcx_programs(ifindex: int) -> bool:
    """Whether programs hang on an interface, on either side, before any filter of tc's."""
    for side in (bpf.TCX_INGRESS, bpf.TCX_EGRESS):
        try:
            answer = bpf.call_packed(bpf.PROG_QUERY, "<IIIIQIIQQQQ", ifindex, side, *[0] * 9)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False  # the kernel has no TCX
        if struct.unpack_from("<I", answer, 24)[0]:
            return True
    return False


def drop_uplink(ip: IPRoute, door: RouteSocket, pins: Pins, interface: str) -> None:
    """Take uplink_rx off one interface, however it hangs there."""
    pinned = pins.uplink(interface)
    if pinned.exists():
        # Unpinned alone, the link would go on for a moment after this returns.
        link = bpf.open_pin(pinned)
        try:
            bpf.call_packed(bpf.LINK_DETACH, "<I", link)
        finally:
            os.close(link)
        pinned.unlink()
    ifindex = links.index_of(ip, interface)
    note = _clsact_note(pins, interface)
    if ifindex:
        tc.remove_ingress_program(door, ifindex)
        ours = note.exists() and note.read_text() == f"made {ifindex}"
        if ours and not tc.ingress_programs(door, ifindex):
            with contextlib.suppress(OSError):
                tc.remove_clsact(door, ifindex)
    note.unlink(missing_ok=True)


def hung_uplinks(pins: Pins) -> set[str]:
    """Interfaces that have, or had, our hook."""
    return pins.uplinks() | {
        path.name.removeprefix("clsact-") for path in pins.root.parent.glob("clsact-*")
    }
