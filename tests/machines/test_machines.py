# SPDX-License-Identifier: Apache-2.0
"""Real virtual machines in slots: booted, configured by DHCP, and restored twice from one snapshot.

Every machine here goes on from one snapshot, which is taken of a machine that was
booted in a slot before anybody knew its VPC.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from geneve_ebpf.model import AddressMode, Endpoint, endpoint_mac, ip_address
from tests.machines import initramfs
from tests.machines.machine import UID, Machine
from tests.nodes import BLUE, RED, Bed, Host, Node, Sandbox, eventually, two_nodes
from tests.packets import GATEWAY, GUEST
from tests.patience import PATIENCE

KERNEL = Path(__file__).parents[2] / ".venv/linux-6.1"
FIRST, SECOND, FAR, NATIVE = "10.0.1.5", "10.0.1.6", "10.0.2.5", "10.0.1.7"
DATA = os.urandom(1 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()
FETCH = "wget -q -O - http://{}:{}/data | sha256sum"
TFTP_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Ground:
    """Two nodes, and what machines are made of."""

    bed: Bed
    directory: Path
    snapshot: Path
    booted: str  # what the machine said of its configuration before the snapshot
    features: str  # of its tap then

    @property
    def node(self) -> Node:
        """Where the machines are."""
        return self.bed.nodes[0]

    @property
    def other(self) -> Node:
        """Where those are whom they talk to."""
        return self.bed.nodes[1]

    @contextmanager
    def restored(
        self, vni: int, address: str, mode: AddressMode = AddressMode.CLONE
    ) -> Iterator[Machine]:
        """A machine that goes on from the snapshot in a slot of its own, attached afterwards."""
        slot = self.node.tap_slot("tap", UID)
        machine = Machine(
            self.directory, KERNEL, self.node.place.netns(slot), "tap0", incoming=self.snapshot
        )
        try:
            own = ip_address(address)
            self.node.plane.attach(slot, f"m{slot}", Endpoint(vni, own, endpoint_mac(own)), mode)
            yield machine
        finally:
            machine.close()


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gnv-machines-")))
        directory.chmod(0o755)
        (directory / "dev").mkdir()
        (directory / "initramfs").write_bytes(initramfs.build(KERNEL))
        bed = stack.enter_context(Bed("machines"))
        node, _ = two_nodes(bed)
        machine = Machine(
            directory, KERNEL, node.place.netns(node.tap_slot("tap", UID)), "tap0"
        )
        try:
            machine.run("udhcpc -i eth0 -q -n -t 5 -T 10 -s /configure 2>&1")
            booted = machine.run("ip -4 addr show eth0; ip -4 route; ip link show eth0")
            machine.run(f"mkdir /www; head -c {len(DATA)} /dev/urandom > /www/data; httpd -h /www")
            netns = node.place.netns(0)
            features = Host(bed, netns, "tap0", "").run("ethtool", "-k", "tap0")
            machine.snapshot(directory / "snapshot")
        finally:
            machine.close()
        node.destroy_slots()
        yield Ground(bed, directory, directory / "snapshot", booted, features)


@pytest.fixture(autouse=True)
def cleared(ground: Ground) -> Iterator[None]:
    yield
    ground.bed.clear()


class Server:
    """Gives DATA to whoever asks, by HTTP and by TFTP, once for each call of `asked`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._tcp = sandbox.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.bind(("", 8000))
        self._tcp.listen()
        self._udp = sandbox.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("", 69))
        for door in (self._tcp, self._udp):
            door.settimeout(60 * PATIENCE)

    @contextmanager
    def serving(self, serve: str) -> Iterator[list[str]]:
        """One request is answered meanwhile; the addresses that asked."""
        peers: list[str] = []
        thread = threading.Thread(target=getattr(self, f"_{serve}"), args=(peers,), daemon=True)
        thread.start()
        yield peers
        thread.join(60 * PATIENCE)
        assert not thread.is_alive()

    def _http(self, peers: list[str]) -> None:
        connection, peer = self._tcp.accept()
        peers.append(peer[0])
        with connection:
            connection.settimeout(60 * PATIENCE)
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA)

    def _tftp(self, peers: list[str]) -> None:
        """RFC 1350, as much of it as one client needs."""
        _, peer = self._udp.recvfrom(4096)
        peers.append(peer[0])
        blocks = -(-TFTP_SIZE // TFTP_BLOCK) + (TFTP_SIZE % TFTP_BLOCK == 0)
        for number in range(1, blocks + 1):
            part = DATA[:TFTP_SIZE][(number - 1) * TFTP_BLOCK : number * TFTP_BLOCK]
            self._udp.sendto(b"\0\3" + number.to_bytes(2, "big") + part, peer)
            while self._udp.recvfrom(4096)[0] != b"\0\4" + number.to_bytes(2, "big"):
                pass


TFTP_SIZE = 20 * TFTP_BLOCK


def assert_talks(machine: Machine, own: str, far: Sandbox, server: Server) -> None:
    """TCP both ways and UDP, across nodes, and the others see its VPC address."""
    with server.serving("http") as peers:
        assert machine.run(FETCH.format(far.address, 8000)).split()[0] == DIGEST
    assert peers == [own]
    with server.serving("tftp") as peers:
        machine.run(f"tftp -g -l /tmp/got -r data {far.address}")
    assert peers == [own]
    wanted = hashlib.sha256(DATA[:TFTP_SIZE]).hexdigest()
    assert machine.run("sha256sum /tmp/got").split()[0] == wanted
    # The other way round: a file that is in every machine since before the snapshot.
    fetched = far.run("sh", "-c", f"busybox {FETCH.format(own, 80)}")
    assert fetched.split()[0] == machine.run("sha256sum /www/data").split()[0]


def test_a_machine_opens_its_tap_as_nobody_and_is_configured_by_dhcp(ground: Ground) -> None:
    """Before its VPC is known; the guest address, the gateway as router, the slots' MTU."""
    assert f"inet {GUEST}/30" in ground.booted
    assert f"default via {GATEWAY} dev eth0" in ground.booted
    assert f"mtu {ground.node.place.mtu} " in ground.booted


def test_offloads_are_on(ground: Ground) -> None:
    """The machine takes frames whose checksums are not made, and merged ones."""
    assert "tx-checksum-ip-generic: on" in ground.features
    assert "tx-tcp-segmentation: on" in ground.features
    assert "tx-tcp6-segmentation: on" in ground.features


def test_two_of_one_snapshot_side_by_side_in_one_vpc(ground: Ground) -> None:
    """Both have the same address inside; both talk to a remote sandbox, and to each other."""
    far = ground.other.sandbox(BLUE, FAR)
    server = Server(far)
    with ground.restored(BLUE, FIRST) as one, ground.restored(BLUE, SECOND) as two:
        assert_talks(one, FIRST, far, server)
        assert_talks(two, SECOND, far, server)
        there = one.run(FETCH.format(SECOND, 80)).split()[0]
        assert there == two.run("sha256sum /www/data").split()[0]
        assert f"inet {GUEST}/30" in one.run("ip -4 addr show eth0")
        assert f"inet {GUEST}/30" in two.run("ip -4 addr show eth0")


def test_two_of_one_snapshot_in_two_vpcs_with_one_address(ground: Ground) -> None:
    """Each talks to its own VPC's sandbox, whose address the other's has too."""
    fars = [ground.other.sandbox(vni, FAR, name=f"far{vni}") for vni in (BLUE, RED)]
    servers = [Server(far) for far in fars]
    with ground.restored(BLUE, FIRST) as one, ground.restored(RED, FIRST) as two:
        assert_talks(one, FIRST, fars[0], servers[0])
        assert_talks(two, FIRST, fars[1], servers[1])


def test_a_native_machine_gets_its_vpc_address_by_dhcp(ground: Ground) -> None:
    """Its lease from before the snapshot is refused, and a new one is asked for."""
    far = ground.other.sandbox(BLUE, FAR)
    with ground.restored(BLUE, NATIVE, AddressMode.NATIVE) as machine:
        machine.run("udhcpc -i eth0 -q -n -t 5 -T 10 -s /configure 2>&1")
        assert f"inet {NATIVE}/32" in machine.run("ip -4 addr show eth0")
        assert_talks(machine, NATIVE, far, Server(far))


def test_superpackets_of_a_machine_cross_whole(ground: Ground) -> None:
    """What it sends reaches the node's program in frames of many segments (TSO)."""
    far = ground.other.sandbox(BLUE, FAR)
    with ground.restored(BLUE, FIRST):
        slot = next(one.slot for one in ground.node.plane.attachments())
        seen = ground.node.capture(ground.node.host_interface(slot))
        far.run("sh", "-c", f"busybox {FETCH.format(FIRST, 80)}")
        assert eventually(lambda: any(len(one.data) > 4000 for one in seen.frames()))
