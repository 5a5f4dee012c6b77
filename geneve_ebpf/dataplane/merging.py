# SPDX-License-Identifier: Apache-2.0
"""Segments merged before a program sees them: an idle tunnel device that feeds the kernel's GRO.

GRO looks into a tunnel's packets only where a tunnel device owns the UDP port. Ours
carries nothing. It has no address, never resolves one, and hangs in the same blocks
as the sandboxes' interfaces, whose programs drop what is sent by it and what a
stranger's packet brings it: nothing enters or leaves the host there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from geneve_ebpf.abi import NodeState
from geneve_ebpf.host import links, messages, taps, tc
from geneve_ebpf.host.netlink import IPRoute, NetlinkError, RouteSocket
from geneve_ebpf.loader import hooks
from geneve_ebpf.loader.maps import SharedArray
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import NodeSettings

DEVICE = "gnv-gro"
# The kernel's own Geneve merges packets with options too; VXLAN's header has the
# same size and place, and GRO compares all of it, the VNI with it.
_KINDS = ("geneve", "vxlan")
_IN_VAIN = (
    "the node keeps taps alone, and those of this kernel cut up again what an uplink has merged:"
    ' merge = "on" has it merged all the same'
)


@dataclass(frozen=True, slots=True)
class Merged:
    """Where the kernel merges, and why not elsewhere."""

    device: str = ""  # its kind, "geneve" or "vxlan"; "" if there is none
    uplinks: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()  # a sentence for each other uplink


class _NotMade(Exception):
    """Why there is no device, in a few words."""


class Merging:
    """Keeps the device; for the process that has the node's netlink, in its namespace."""

    def __init__(
        self, settings: NodeSettings, ip: IPRoute, door: RouteSocket, pins: Pins, block: int
    ) -> None:
        """block: the sandboxes' ingress block; the next number is the one of their egress."""
        self._settings = settings
        self._ip = ip
        self._door = door
        self._pins = pins
        self._blocks = (block, block + 1)
        self.watched: set[str] = {DEVICE}  # interfaces whose change may change something here

    def look(self, uplinks: Sequence[links.Link], vrf: str) -> Merged:
        """Make, mend or remove the device, as the uplinks are now. vrf: "" if they are in none."""
        try:
            found = self._find_out(uplinks, vrf)
        except (OSError, NetlinkError) as error:  # it changed while we looked
            found = Merged(reasons=(f"{DEVICE}: {error}",))
        _tell_programs(self._pins, bool(found.device))
        return found

    def _find_out(self, uplinks: Sequence[links.Link], vrf: str) -> Merged:
        if self._settings.merge == "off":
            remove(self._ip)
            return Merged(reasons=('switched off: merge = "off"',))
        if self._settings.merge == "auto" and self._is_in_vain():
            remove(self._ip)
            return Merged(reasons=(_IN_VAIN,))
        self.watched = {DEVICE}
        able, reasons, harmful = [], [], False
        for uplink in uplinks:
            reason, lists = self._look_at(uplink)
            harmful |= lists
            if reason:
                reasons.append(reason)
            else:
                able.append(uplink.name)
        if harmful or not able:
            remove(self._ip)
            return Merged(reasons=tuple(reasons))
        try:
            kind = self._find(vrf) or self._make(vrf)
        except _NotMade as error:
            # Else the coming and going of the device that was tried would have it tried again.
            self.watched.discard(DEVICE)
            return Merged(reasons=(*reasons, str(error)))
        return Merged(kind, tuple(able), tuple(reasons))

    def _is_in_vain(self) -> bool:
        """Whether all slots are taps that would cut up again what was merged on an uplink."""
        kept = self._settings
        only_taps = not kept.slots and (kept.tap_slots or kept.host_tap_slots)
        return bool(only_taps) and not taps.take_what_was_in_a_tunnel()

    def _look_at(self, uplink: links.Link) -> tuple[str, bool]:
        """Why this one does not merge, "" if it does; and whether it would harm if it did."""
        for name in links.below(self._ip, uplink):
            self.watched.add(name)
            try:
                on = links.features_on(self._door, name)
            except OSError as error:
                return f"{name}: {error.strerror}", False
            # Lists of segments, which a packet that changes its namespace must not be.
            if "rx-gro-list" in on:
                return f"{name} chains segments: ethtool -K {name} rx-gro-list off", True
            if "rx-gro" not in on:
                return f"GRO is off on {name}: ethtool -K {name} gro on", False
        return "", False

    def _kinds(self, vrf: str) -> tuple[str, ...]:
        return _KINDS[1:] if vrf else _KINDS  # geneve's socket cannot be in a VRF

    def _alias(self, vrf: str) -> str:
        return f"{self._settings.run_directory} port {self._settings.udp_port} vrf {vrf or '-'}"

    def _find(self, vrf: str) -> str:
        """The kind of the device, if it is there, up, and closed as we close it."""
        device = links.describe(self._ip, DEVICE)
        if (
            device is not None
            and device.kind in self._kinds(vrf)
            and device.up
            and links.alias_of(self._ip, device.index) == self._alias(vrf)
            and tc.shared_blocks(self._door, device.index) == self._blocks
        ):
            return device.kind
        return ""

    def _make(self, vrf: str) -> str:
        port = self._settings.udp_port
        why = ""
        for kind in self._kinds(vrf):
            remove(self._ip)
            try:
                self._make_one(kind, vrf)
            except (OSError, NetlinkError) as error:
                code = int((error.errno if isinstance(error, OSError) else error.code) or 0)
                remove(self._ip)
                if code in (errno.EADDRINUSE, errno.EBUSY, errno.EEXIST):
                    raise _NotMade(f"UDP port {port} is taken: ss -lun sport = :{port}") from None
                why = f"the kernel has no {' or '.join(self._kinds(vrf))} device for it: " + (
                    os.strerror(code)
                )
            else:
                return kind
        raise _NotMade(why)

    def _make_one(self, kind: str, vrf: str) -> None:
        link = links.index_of(self._ip, hooks.ANCHOR) if vrf else 0
        self._door.tell_all([messages.tunnel(DEVICE, kind, self._settings.udp_port, link)])
        index = links.index_of(self._ip, DEVICE)
        links.silence(self._door, index, DEVICE)
        ingress, egress = self._blocks
        tc.add_clsact(self._door, index, ingress_block=ingress, egress_block=egress)
        if tc.shared_blocks(self._door, index) != self._blocks:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        links.set_alias(self._ip, index, self._alias(vrf))
        links.set_up(self._ip, index)  # not before it is closed


def remove(ip: IPRoute) -> None:
    """Remove the device, if there is one."""
    index = links.index_of(ip, DEVICE)
    if index:
        links.remove(ip, index)


def _tell_programs(pins: Pins, merging: bool) -> None:
    state: SharedArray[NodeState] = SharedArray(pins.map("node_state"), NodeState, writable=True)
    try:
        state.row(0).merging = int(merging)
    finally:
        state.close()
