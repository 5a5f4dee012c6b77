# SPDX-License-Identifier: Apache-2.0
"""The uplinks while the node is up: one may vanish and come back, and its MTU may change.

Programs ask the kernel's routes for every packet, so all that follows from such
a change is the hook on an interface that was made anew, and the size of packets
that sandboxes are told: their eth0's MTU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from geneve_ebpf.abi import OVERHEAD, NodeState
from geneve_ebpf.dataplane import relay
from geneve_ebpf.dataplane.merging import Merged, Merging
from geneve_ebpf.dataplane.node import facts, write_facts
from geneve_ebpf.errors import GeneveError
from geneve_ebpf.host import links
from geneve_ebpf.host.netlink import IPRoute, NetlinkError, RouteSocket
from geneve_ebpf.loader import hooks
from geneve_ebpf.loader.maps import SharedArray
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import NodeSettings


def slot_mtu(settings: NodeSettings, uplinks: Iterable[links.Link]) -> int:
    """Bytes of the largest inner packet that fits through every uplink."""
    return min((one.mtu for one in uplinks), default=1500) - OVERHEAD[settings.vtep.version]


def write_mtu(pins: Pins, mtu: int) -> None:
    """Let the node's processes know the slots' MTU."""
    state: SharedArray[NodeState] = SharedArray(pins.map("node_state"), NodeState, writable=True)
    try:
        state.row(0).slot_mtu = mtu
    finally:
        state.close()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the uplinks found."""

    mtu: int  # of the slots from now on, bytes
    problems: tuple[str, ...]  # one sentence for each uplink that takes no part, or for all
    down: tuple[str, ...]  # one for each that carries nothing for the moment
    merged: Merged
    no_relay: str  # why TCP is not merged anew for host taps; "" if it is


def _why_down(uplink: links.Link) -> str:
    """Why nothing leaves by an uplink; "" if something may."""
    if not uplink.up:
        return f"{uplink.name} is down"
    return "" if uplink.carrier else f"{uplink.name} has no carrier"


class Uplinks:
    """Keeps the hooks of a node's uplinks hung; for the process that has its netlink."""

    def __init__(self, settings: NodeSettings, ip: IPRoute, door: RouteSocket) -> None:
        """Both sockets are in the node's namespace, and so is the thread, always."""
        self._settings = settings
        self._ip = ip
        self._door = door
        self._pins = Pins(settings.run_directory)
        self._facts = facts(settings.run_directory)
        self._merging = Merging(settings, ip, door, self._pins, self._facts.block)
        self._relayed = False
        self._hung: dict[str, int] = {}  # name -> index of the interface that has our hook

    @property
    def watched(self) -> set[str]:
        """Names of the interfaces after whose change it is time to `look`."""
        # Of a pair that cannot be made, the coming and going would have it tried again.
        relays = {relay.NEAR, relay.FAR} if self._relayed else set()
        return self._merging.watched | set(self._settings.uplinks) | relays

    def look(self) -> Seen:
        """Hang the hook on what came (back), find and record the slots' MTU, see to merging.

        Without an uplink the MTU stays as it was.
        """
        vrf = ""
        present, problems = [], []
        for name in self._settings.uplinks:
            try:
                present.append(self._look_at(name))
            except GeneveError as error:
                self._hung.pop(name, None)
                problems.append(error.message)
            # It went again meanwhile, or somebody's program is in the way.
            except (OSError, NetlinkError) as error:
                self._hung.pop(name, None)
                problems.append(f"uplink {name} takes no program: {error}")
        down = tuple(text for text in map(_why_down, present) if text)
        if present and len(down) == len(present):
            problems.append(f"no uplink carries anything: {', '.join(down)}")
        if present:
            try:
                vrf = hooks.vrf_of(present)
                hooks.follow_vrf(self._ip, vrf)
            except GeneveError as error:  # on their way from one to another, at best
                problems.append(error.message)
            except (OSError, NetlinkError) as error:
                problems.append(f"the uplinks' VRF cannot be followed: {error}")
        mtu = slot_mtu(self._settings, present) if present else self._facts.mtu
        if mtu != self._facts.mtu:
            self._facts = replace(self._facts, mtu=mtu)
            write_mtu(self._pins, mtu)
            write_facts(self._settings.run_directory, self._facts)
        merged = self._merging.look(present, vrf)
        if self._settings.merge == "on":
            problems += [f"nothing is merged: {reason}" for reason in merged.reasons]
        no_relay = relay.keep(self._ip, self._door, self._pins, self._facts.block)
        self._relayed = not no_relay
        return Seen(mtu, tuple(problems), down, merged, no_relay)

    def _look_at(self, name: str) -> links.Link:
        found = hooks.find_uplink(self._ip, name)
        if self._hung.get(name) != found.index:
            tcx = self._facts.uplink_hook == "tcx"
            hooks.hang_uplink(self._ip, self._door, self._pins, name, tcx=tcx)
            self._hung[name] = found.index
        return found
