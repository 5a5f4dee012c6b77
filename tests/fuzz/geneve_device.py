# SPDX-License-Identifier: Apache-2.0
"""The kernel's own geneve device gets the generator's frames: does it decapsulate what we do?

Only what both have an opinion on is compared, from the outer IP header to the inner
Ethernet header: an `external` device takes any VNI and any sender, and who has the
inner address is none of its business. Where it thinks differently, and why, is
`DIFFERENCES`; anything else is a mismatch.

    python -m tests.fuzz.geneve_device [FRAMES [SEED]]      as root, with the module
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from geneve_ebpf.host import namespaces
from lab.network import run
from tests.fuzz.traffic import UPLINK_RX, Traffic
from tests.model import geneve
from tests.model.packet import IPV4, IPV6, TEB
from tests.model.state import Binding, Config, Context, Drop, Endpoint, Node, Outcome, Vtep
from tests.model.sums import ones, pseudo, word
from tests.model.uplink import Arrival, find_tunnel, open_tunnel

DEVICE, UPLINK, WIRE = "gnvk2", "gnvk0", "gnvk1"
_EVERYTHING = 3  # ETH_P_ALL
_PATIENCE = 0.05  # seconds, for a frame that should have come out

# Where the kernel may think differently: why we drop or deliver, and what it does.
DIFFERENCES = {
    "outer_options": "it skips IP options and extension headers",
    "outer_fragment": "it waits for the other fragments (not fed to it)",
    "geneve_control": "an external device hands the O bit to whoever reads the metadata",
    "geneve_critical": "likewise options, critical or not",
    "geneve_options": "and does not look into them",
    "pending checksum": "it knows from the frame's metadata what a device is to complete",
    "no Ethernet": "it takes IP without Ethernet only as an `innerprotoinherit` device",
    "cut off inside": "it reads the ECN field of an inner packet without looking for one",
}


@dataclass(slots=True)
class Tally:
    """What was compared."""

    frames: int = 0
    delivered: int = 0  # by both
    dropped: int = 0  # by both
    differing: Counter[str] = field(default_factory=Counter)  # of the known differences
    mismatches: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        known = "".join(f"\n{n:8,} {why}: {DIFFERENCES[why]}" for why, n in self.differing.items())
        return (
            f"{self.frames:,} frames: {self.delivered:,} delivered and {self.dropped:,} dropped"
            f" by both, {len(self.mismatches)} mismatches, and as known:{known}"
        )


class Device:
    """An external geneve device, the wire it is fed by, and a look at what comes out."""

    def __init__(self) -> None:
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._wire.bind((WIRE, 0))
        self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERYTHING))
        self._out.bind((DEVICE, _EVERYTHING))
        self._out.setblocking(False)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as uplink:
            uplink.bind((UPLINK, 0))
            self.mac: bytes = uplink.getsockname()[4]

    def close(self) -> None:
        """Close the sockets."""
        self._wire.close()
        self._out.close()

    def feed(self, frame: bytes, *, expected: bool) -> bytes | None:
        """The inner frame that came out for this one, or None."""
        self._wire.send(frame)
        # A veth hands a frame over before send() returns, or very soon.
        if expected:
            select.select([self._out], [], [], _PATIENCE)
        found = None
        while True:
            try:
                data, address = self._out.recvfrom(1 << 16)
            except BlockingIOError:
                return found
            if address[2] != socket.PACKET_OUTGOING:
                found = data


@contextmanager
def device() -> Iterator[Device]:
    """The device in a namespace of its own, which this thread is in meanwhile.

    Raises RuntimeError where the kernel has none.
    """
    root = Path(tempfile.mkdtemp(prefix="gnv-test-", dir="/run"))
    netns = root / "device.netns"
    try:
        os.close(namespaces.create(netns))
        try:
            with namespaces.entering(netns):
                _furnish()
                there = Device()
                try:
                    yield there
                finally:
                    there.close()
        finally:
            namespaces.remove(netns)
    finally:
        shutil.rmtree(root)


def _furnish() -> None:
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    ip = "ip"
    run(ip, "link", "add", DEVICE, "type", "geneve", "external", "udp6zerocsumrx")
    run(ip, "link", "add", UPLINK, "mtu", "4000", "type", "veth", "peer", WIRE, "mtu", "4000")
    Path(f"/proc/sys/net/ipv6/conf/{WIRE}/disable_ipv6").write_text("1")
    Path(f"/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6").write_text("1")
    run(ip, "address", "add", "192.0.2.1/24", "dev", UPLINK)
    run(ip, "address", "add", "2001:db8::1/64", "dev", UPLINK, "nodad")
    for name in (WIRE, UPLINK, DEVICE):
        run(ip, "link", "set", name, "up")


def _node(underlay: int) -> Node:
    """A state whose VTEPs are on the link; what is inside does not matter much."""
    if underlay == 4:
        vtep, others = bytes([192, 0, 2, 1]), [bytes([192, 0, 2, last]) for last in (2, 3, 40)]
    else:
        prefix = bytes.fromhex("20010db8") + bytes(11)
        vtep, others = prefix + b"\1", [prefix + bytes([last]) for last in (2, 3, 40)]
    addresses = (bytes([10, 0, 1, 5]), bytes.fromhex("fd006e7600000000000000000a000105"))
    return Node(
        Config(vtep=vtep),
        (Binding(1, 43, *addresses, b"\x02\0\0\0\0\5"),),
        {(43, address): Endpoint(1, 0) for address in addresses},
        vteps={other: Vtep() for other in others},
    )


def compare(frames: int, seed: int) -> Tally:
    """So many frames over each underlay."""
    tally = Tally()
    with device() as there:
        for underlay in (4, 6):
            node = _node(underlay)
            for item in Traffic(node, seed, there.mac).items(frames * 2):
                if item.program == UPLINK_RX:
                    _one(tally, there, node, item.frame)
    return tally


def _one(tally: Tally, there: Device, node: Node, frame: bytes) -> None:
    found = find_tunnel(node, frame, Context(to_us=frame[:6] == there.mac))
    if isinstance(found, Outcome):
        return  # not for a tunnel of ours
    tally.frames += 1
    if found.odd == "outer_fragment":
        tally.differing["outer_fragment"] += 1
        return
    wanted, why = _decapsulated(node, frame[14:], found)
    got = there.feed(frame, expected=wanted is not None)
    if why == "no Ethernet" and got is None:
        tally.differing[why] += 1
    elif (wanted is None) == (got is None) and (wanted is None or _same(wanted, got or b"")):
        tally.delivered += got is not None
        tally.dropped += got is None
    elif why in DIFFERENCES:
        tally.differing[why] += 1
    else:
        words = {True: "nothing"}
        tally.mismatches.append(
            f"{why or 'delivered'}: the kernel gives {words.get(got is None, (got or b'').hex())},"
            f" should be {words.get(wanted is None, (wanted or b'').hex())}: {frame.hex()}"
        )


def _decapsulated(node: Node, data: bytes, arrival: Arrival) -> tuple[bytes | None, str]:
    """(the inner frame, why there is none or what is odd about it)."""
    try:
        opened = open_tunnel(node.config, data, arrival)
        if opened.protocol != TEB:
            return None, "no Ethernet"
        inner = data[opened.payload : opened.end]
        if len(inner) < 14:
            return None, "short_frame"
        why = _pending(node.config, data, arrival)
        kind, packet = word(inner, 12), inner[14:]
        if kind in (IPV4, IPV6):
            family = 4 if kind == IPV4 else 6
            if len(packet) < (20 if family == 4 else 40):
                return inner, why or "cut off inside"
            packet = geneve.with_outer_ecn(packet, family, arrival.ecn)
        return inner[:14] + packet, why
    except Drop as drop:
        return None, drop.reason


def _pending(config: Config, data: bytes, arrival: Arrival) -> str:
    udp = data[arrival.udp : arrival.udp + word(data, arrival.udp + 4)]
    head = pseudo(arrival.sender, config.vtep, geneve.UDP, len(udp))
    summed = not word(udp, 6) or ones(head + udp) == 0xFFFF
    return "" if summed else "pending checksum"


def _same(wanted: bytes, got: bytes) -> bool:
    """A socket sees a VLAN tag beside the frame, not in it."""
    return wanted == got or word(wanted, 12) in (0x8100, 0x88A8)


def main(arguments: list[str]) -> int:
    """Compare and tell; 0 if there was no mismatch."""
    frames, seed = (*(int(word) for word in arguments), *(5000, 1)[len(arguments) :])
    tally = compare(frames, seed)
    print(tally)
    for text in tally.mismatches[:10]:
        print(f"\n{text}")
    return 1 if tally.mismatches or not tally.delivered else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
