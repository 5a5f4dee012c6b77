# SPDX-License-Identifier: Apache-2.0
"""A sandbox behind a tap, as a microVM is: checksums that its kernel leaves to the device.

The test is the virtual machine: it writes frames with virtio's header in front,
and reads what comes back the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from geneve_ebpf.model import ip_address
from tests.nodes import BLUE, Bed, set_features, six, two_nodes
from tests.packets import ICMP, TCP, UDP, Ether, ICMPv6PacketTooBig, Packet, Raw, faults, from_guest
from tests.tap import CHECKSUM, OWN, Received, Tap

ADDRESSES = {4: "10.0.2.5", 6: six("10.0.2.5")}
MTU = 1450
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed("tap") as made:
        two_nodes(made)
        for node in made.nodes:
            set_features(node.netns, "uplink0", "tx", "off")
        yield made


@pytest.fixture(params=["tap", "host-tap"])
def kind(request: pytest.FixtureRequest) -> str:
    """Where the tap is."""
    return str(request.param)


@pytest.fixture(params=[0, CHECKSUM], ids=["offload-off", "offload-on"])
def tap(request: pytest.FixtureRequest, bed: Bed, kind: str) -> Iterator[Tap]:
    """Whether the machine takes frames whose checksums are not made."""
    made = Tap(bed.nodes[0], kind, offloads=request.param)
    yield made
    made.close()
    bed.clear()


def folded(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return total % 0xFFFF or 0xFFFF


def unfinished(frame: Packet) -> tuple[bytes, int, int]:
    """The frame with the pseudo-header's sum as its checksum; where to go on, and the field."""
    raw = bytearray(bytes(frame))
    of_ipv6 = raw[12:14] == b"\x86\xdd"
    start = 14 + (40 if of_ipv6 else 20)
    protocol, offset = (6, 16) if frame.haslayer(TCP) else (17, 6)
    ends = raw[22:54] if of_ipv6 else raw[26:34]
    pseudo = bytes(ends) + bytes([0, protocol]) + (len(raw) - start).to_bytes(4, "big")
    raw[start + offset : start + offset + 2] = folded(pseudo).to_bytes(2, "big")
    return bytes(raw), start, offset


def finished(received: Received) -> bytes:
    """The frame as the machine's kernel would complete it if it had to pass it on."""
    if not received.start:
        return received.frame
    value = 0xFFFF - folded(received.frame[received.start :]) or 0xFFFF
    field = received.field
    return received.frame[:field] + value.to_bytes(2, "big") + received.frame[field + 2 :]


def assert_told(received: Received, sent: bytes) -> None:
    """The error about this frame, right in every checksum, now and completed."""
    assert not received.merged
    assert faults(received.frame) == []
    assert faults(finished(received)) == []
    frame = Ether(received.frame)
    if sent[12:14] == b"\x86\xdd":
        assert frame[ICMPv6PacketTooBig].mtu == MTU
        quote = bytes(frame[ICMPv6PacketTooBig].payload)
    else:
        assert (frame[ICMP].type, frame[ICMP].code, frame[ICMP].nexthopmtu) == (3, 4, MTU)
        quote = bytes(frame[ICMP].payload)
    # All of it but for the checksum that nobody had made yet.
    headers = 60 if sent[12:14] == b"\x86\xdd" else 40
    assert quote[headers:] == sent[14 + headers : 14 + len(quote)]


HEADERS = {"tcp": TCP(sport=40000, dport=443, seq=7, flags="PA"), "udp": UDP(sport=1, dport=2)}


@FAMILIES
@pytest.mark.parametrize("made", ["made", "not-made"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_error_about_a_packet_is_right_whoever_makes_its_checksum(
    tap: Tap, family: int, header: Packet, made: str
) -> None:
    """A tap without offload has the kernel complete the quoted checksum on the way out."""
    flags = {"flags": "DF"} if family == 4 else {}
    for size in range(1440, 1446):  # odd and even
        packet = from_guest(header / Raw(os.urandom(size)), ADDRESSES[family], **flags)
        if made == "made":
            sent = bytes(packet)
            tap.send(sent)
        else:
            sent, start, offset = unfinished(packet)
            tap.send(sent, start=start, offset=offset)

        assert_told(tap.receive(), sent)


@pytest.mark.kernel
@FAMILIES
def test_error_about_a_gso_frame_is_right(tap: Tap, family: int) -> None:
    """One error for all of it, whose segments would have been too long."""
    flags = {"flags": "DF"} if family == 4 else {}
    packet = from_guest(HEADERS["tcp"] / Raw(os.urandom(20_000)), ADDRESSES[family], **flags)
    sent, start, offset = unfinished(packet)

    tap.send(sent, start=start, offset=offset, segment=1460)

    assert_told(tap.receive(), sent)


@FAMILIES
def test_gso_frame_of_segments_that_fit_passes(bed: Bed, tap: Tap, family: int) -> None:
    """And every segment has right checksums on the wire."""
    wire = bed.nodes[1].capture()
    flags = {"flags": "DF"} if family == 4 else {}
    data = os.urandom(20_000)
    sent, start, offset = unfinished(
        from_guest(HEADERS["tcp"] / Raw(data), ADDRESSES[family], **flags)
    )

    tap.send(sent, start=start, offset=offset, segment=1300)

    frames = [found.data for found in wire.wait() if len(found.data) > 500]
    frames += [found.data for found in wire.frames() if len(found.data) > 500]
    assert len(frames) == -(-len(data) // 1300)
    assert [faults(frame) for frame in frames] == [[]] * len(frames)


@pytest.mark.kernel
@FAMILIES
@pytest.mark.parametrize("odd", [0, 1], ids=["even", "odd"])
def test_handshake_whose_checksum_is_not_made_is_clamped(
    bed: Bed, tap: Tap, family: int, odd: int
) -> None:
    """The sum that its field has does not cover the option; the one on the wire does."""
    wire = bed.nodes[1].capture()
    options = [("NOP", None)] * odd + [("MSS", 8960)]
    packet = from_guest(TCP(sport=40000, dport=443, flags="S", options=options), ADDRESSES[family])
    sent, start, offset = unfinished(packet)

    tap.send(sent, start=start, offset=offset)

    (frame,) = [found.data for found in wire.wait() if found.data[12:14] == b"\x08\x00"]
    assert faults(frame) == []
    assert dict(Ether(frame)[TCP].options)["MSS"] == MTU - (40 if family == 4 else 60)


@FAMILIES
def test_machine_that_puts_its_checksum_elsewhere_changes_two_bytes_of_its_own_packet(
    bed: Bed, tap: Tap, family: int
) -> None:
    """
    A known limit: what a device is to write, and where, no program can see.

    The kernel writes it behind all our checks: here over the source address. Its
    own packet is all that it can reach, which stays in its VPC.
    """
    wire = bed.nodes[1].capture()
    frame = bytes(from_guest(UDP(sport=1, dport=2) / Raw(bytes(64)), ADDRESSES[family]))
    # The last two bytes of the source; the sum may begin 20 bytes into the frame at the earliest.
    place = 28 if family == 4 else 36

    tap.send(frame, start=20, offset=place - 20)

    (arrived,) = [found.data for found in wire.wait() if found.data[12:14] == b"\x08\x00"]
    inner = 50  # where the inner Ethernet header is
    source = ip_address(OWN if family == 4 else six(OWN)).packed
    at = inner + 14 + (12 if family == 4 else 8)
    assert arrived[46:49] == BLUE.to_bytes(3, "big")
    assert arrived[at : at + len(source) - 2] == source[:-2]
    assert arrived[at : at + len(source)] != source
    # Everything else is as it would have been, but for the sum that was to be made.
    tap.send(frame)
    (plain,) = [found.data for found in wire.wait() if found.data[12:14] == b"\x08\x00"]
    udp = inner + 14 + (20 if family == 4 else 40)
    changed = {place for place in range(42, len(plain)) if arrived[place] != plain[place]}
    assert changed - {udp + 6, udp + 7} <= {at + len(source) - 2, at + len(source) - 1}


@pytest.mark.parametrize("start", [1, 13, 14, 19])
def test_machine_cannot_put_its_checksum_into_an_ethernet_header(
    bed: Bed, tap: Tap, start: int
) -> None:
    """Where our tunnel's own would be later: the kernel refuses what begins before byte 20."""
    frame = bytes(from_guest(UDP(sport=1, dport=2) / Raw(bytes(64)), ADDRESSES[4]))

    with pytest.raises(OSError, match="Invalid argument"):
        tap.send(frame, start=start)
