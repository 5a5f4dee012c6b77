# SPDX-License-Identifier: Apache-2.0
"""What hangs where on a node, and in which order: the child that `node` starts.

    python -m geneve_ebpf.dataplane.node_setup up|down SETTINGS

On failure the last line of stdout is the error as JSON and the status is 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys

from geneve_ebpf.dataplane import merging, relay
from geneve_ebpf.dataplane.config import Config, read_config, write_config
from geneve_ebpf.dataplane.node import Facts, fingerprint, write_facts
from geneve_ebpf.dataplane.plane import DataPlane
from geneve_ebpf.dataplane.uplinks import slot_mtu, write_mtu
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import links, namespaces, slots
from geneve_ebpf.host.given import Records
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from geneve_ebpf.loader import bpf, capabilities, hooks
from geneve_ebpf.loader.compile import load_and_pin
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import NodeSettings


def _up(settings: NodeSettings) -> None:
    missing = [found for found in capabilities.probe() if found.needed and not found.ok]
    if missing:
        raise GeneveError(
            Code.KERNEL_UNSUPPORTED,
            "the kernel lacks " + "; ".join(f"{one.name} ({one.detail})" for one in missing),
            hint="geneve-ebpf doctor",
        )
    pins = Pins(settings.run_directory)
    with namespaces.entering(settings.netns), IPRoute() as ip, RouteSocket() as door:
        _refuse_other_node(ip, settings)
        pins.mount()
        pins.refuse_other_layouts()
        namespaces.make_directory(settings.run_directory / "netns")
        boot, remark = "adopted", ""
        if not pins.have_programs():
            boot, remark = load_and_pin(settings.run_directory)
        tcx = capabilities.has_tcx()
        uplinks = [hooks.find_uplink(ip, name) for name in settings.uplinks]
        vrf = hooks.vrf_of(uplinks)
        mtu = slot_mtu(settings, uplinks)
        _refuse_other_config(pins, settings)
        _refuse_fewer_uplinks(ip, pins, settings)
        _refuse_other_namespace(ip, settings)
        block, anchor = hooks.hang_blocks(ip, door, pins, vrf)
        write_config(pins, Config.of(settings), anchor)
        write_mtu(pins, mtu)
        relay.keep(ip, door, pins, block)  # before any slot; the slot process says why not
        for stale in hooks.hung_uplinks(pins) - set(settings.uplinks):
            hooks.drop_uplink(ip, door, pins, stale)
        for uplink in settings.uplinks:
            hooks.hang_uplink(ip, door, pins, uplink, tcx=tcx)
        pins.drop_old_programs()
    write_facts(
        settings.run_directory,
        Facts(
            block,
            _program_id(pins, "sandbox_tx"),
            _program_id(pins, "sandbox_guard"),
            "tcx" if tcx else "clsact",
            boot,
            mtu,
            remark,
            anchor,
            fingerprint(settings),
        ),
    )


def _program_id(pins: Pins, name: str) -> int:
    fd = bpf.open_pin(pins.program(name))
    try:
        return bpf.program_info(fd).id
    finally:
        os.close(fd)


def _refuse_other_node(ip: IPRoute, settings: NodeSettings) -> None:
    other = hooks.other_node(ip, settings.run_directory)
    if other:
        raise GeneveError(
            Code.NODE_IN_USE,
            f"the node at {other} has this network namespace",
            hint="one node in each: give this one another netns, or take that one down",
            field="netns",
        )


def _refuse_other_config(pins: Pins, settings: NodeSettings) -> None:
    """Slots carry the guest's addresses, peers of sandboxes know the VTEP: no change under them."""
    try:
        before = read_config(pins)
    except GeneveError:
        return
    wanted = Config.of(settings)
    if before == wanted:
        return
    differing = [
        name for name in Config.__slots__ if getattr(before, name) != getattr(wanted, name)
    ]
    slots, sandboxes = _known_slots(settings), _sandboxes(settings)
    if sandboxes or (slots and set(differing) - {"vtep", "udp_port"}):
        raise GeneveError(
            Code.NODE_IN_USE,
            "the node is up with "
            + ", ".join(f"another {name} ({_said(getattr(before, name))})" for name in differing),
            hint="undo the change, or take the node down first: geneve-ebpf node down",
            field=differing[0],
        )


def _refuse_fewer_uplinks(ip: IPRoute, pins: Pins, settings: NodeSettings) -> None:
    """Sandboxes are reached through the uplinks there are: none is taken from under them."""
    gone = sorted(
        name
        for name in hooks.hung_uplinks(pins) - set(settings.uplinks)
        if links.index_of(ip, name)
    )
    if gone and _sandboxes(settings):
        raise GeneveError(
            Code.NODE_IN_USE,
            f"sandboxes are attached, and the node's uplink {gone[0]} is not in the configuration",
            hint="name it there, or detach them first: geneve-ebpf node drain",
            field="uplinks",
        )


def _said(value: object) -> str:
    return value.hex(":") if isinstance(value, bytes) else str(value)


def _sandboxes(settings: NodeSettings) -> bool:
    """Is anybody attached, by the maps' word?"""
    try:
        plane = DataPlane.open(settings.run_directory, writable=False)
    except GeneveError:
        return False
    try:
        return any(True for _ in plane.attachments())
    finally:
        plane.close()


def _refuse_other_namespace(ip: IPRoute, settings: NodeSettings) -> None:
    """Slots stay where they were made, and an anchor is where they are."""
    if _known_slots(settings) and not links.index_of(ip, hooks.ANCHOR):
        raise GeneveError(
            Code.NODE_IN_USE,
            "the node's slots are not in this network namespace",
            hint="with the netns it had, or if that is gone: geneve-ebpf node down --config FILE",
            field="netns",
        )


def _down(settings: NodeSettings) -> None:
    pins = Pins(settings.run_directory)
    netns_directory = settings.run_directory / "netns"
    names = sorted(netns_directory.glob("slot-*")) if netns_directory.exists() else []
    indexes = {int(path.name.removeprefix("slot-")) for path in names} | _known_slots(settings)
    indexes |= {index for index, _ in Records(settings.run_directory)}
    # A namespace that is gone took its interfaces with it: the rest still goes.
    there = contextlib.suppress(GeneveError) if settings.netns else contextlib.nullcontext()
    with there, namespaces.entering(settings.netns), IPRoute() as ip, RouteSocket() as door:
        # Refused because another node has the namespace, this one hung nothing in it.
        ours = not hooks.other_node(ip, settings.run_directory)
        for uplink in hooks.hung_uplinks(pins) | set(settings.uplinks if ours else ()):
            hooks.drop_uplink(ip, door, pins, uplink)
        for path in names:
            namespaces.remove(path)
        if ours:
            named = {int(path.name.removeprefix("slot-")) for path in names}
            slots.cut_off_all(door, sorted(indexes - named))
            slots.wait_gone(ip, sorted(indexes))
            merging.remove(ip)
            relay.remove(ip)
            hooks.drop_blocks(ip)
    for path in names:
        namespaces.remove(path)
    namespaces.remove_directory(netns_directory)
    pins.unmount()
    if settings.run_directory.exists():
        shutil.rmtree(settings.run_directory)


def _known_slots(settings: NodeSettings) -> set[int]:
    """Those of the maps: one that is being destroyed has lost its mount already, but an
    interface still while somebody sits in its namespace.
    """
    try:
        plane = DataPlane.open(settings.run_directory, writable=False)
    except GeneveError:
        return set()
    try:
        return {slot.index for slot in plane.slots()}
    finally:
        plane.close()


def _main() -> int:
    what, settings = sys.argv[1], NodeSettings.from_json(sys.argv[2])
    try:
        _require_root()
        namespaces.require_machine_mounts()
        {"up": _up, "down": _down}[what](settings)
    except GeneveError as error:
        print(
            json.dumps(
                {
                    "code": error.code.name,
                    "message": error.message,
                    "hint": error.hint,
                    "field": error.field,
                }
            )
        )
        return 1
    return 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise GeneveError(Code.NOT_PERMITTED, "root is needed for this", hint="use sudo")


if __name__ == "__main__":
    sys.exit(_main())
