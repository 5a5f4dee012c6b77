# SPDX-License-Identifier: Apache-2.0
"""Taps that the agent opens for who may not: descriptors over its socket, and real frames."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces, taps
from lab.network import ROOT, Lab, Node
from tests.api import children, kill_slot_process
from tests.command import COMMAND, asked, geneve, refused
from tests.kinds import KINDS, Machine, states, where
from tests.nodes import eventually

_TUNGETIFF, _TUNGETVNETHDRSZ, _TUNSETVNETHDRSZ = 0x800454D2, 0x800454D7, 0x400454D8
# What a virtual machine gets that is nobody, and without a right: descriptor 3.
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
ASKS = "import sys; from tests.kinds import Machine; print(Machine(3).asks(sys.argv[1]))"


def reserved(node: Node, kind: str) -> dict[str, Any]:
    slot: dict[str, Any] = asked(node, "slot", "reserve", "--kind", kind)["slot"]
    return slot


def opened(node: Node, slot: dict[str, Any]) -> int:
    """A descriptor of a slot's tap, from the agent."""
    with node.client() as client:
        return client.open_tap(slot["id"])


def taps_open_in(pid: int) -> list[str]:
    """Descriptors of taps that a process has."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(one) == "/dev/net/tun":
                found.append(one.name)
    return found


def nobody_keeps_one(lab: Lab, node: Node) -> bool:
    """Whether neither the agent nor any process of its has a tap open."""
    agent = lab.agents[node.name]
    ours = [agent, *children(agent, "geneve_ebpf.agent.slot_process")]
    return not any(map(taps_open_in, ours))


@KINDS
def test_a_machine_talks_by_a_descriptor(lab: Lab, node: Node, kind: str) -> None:
    """From a reservation, to a sandbox of the other node; only once it is attached; the agent
    and its children keep nothing open."""
    far = asked(lab.nodes[1], "attach", "far", "--vpc", "blue")
    slot = reserved(node, kind)
    machine = Machine(opened(node, slot))
    try:
        assert nobody_keeps_one(lab, node)
        assert not os.get_inheritable(machine.fd)
        assert not machine.asks(far["address"])
        asked(node, "attach", "vm", "--vpc", "blue", "--slot", slot["id"])
        assert machine.asks(far["address"])
    finally:
        machine.close()
    machine = Machine(opened(node, slot))  # of an attached one
    try:
        assert machine.asks(far["address"])
    finally:
        machine.close()


@KINDS
def test_who_may_not_open_a_tap_runs_a_machine(lab: Lab, node: Node, kind: str) -> None:
    """By the command, which gives it descriptor 3 and ends as it ends."""
    far = asked(lab.nodes[1], "attach", "far", "--vpc", "blue")
    slot = reserved(node, kind)
    asked(node, "attach", "vm", "--vpc", "blue", "--slot", slot["id"])

    words = (*AS_NOBODY, "env", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-c", ASKS)
    done = geneve(node, "slot", "exec", slot["id"], "--", *words, far["address"], cwd=ROOT)

    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    listing = ("sh", "-c", "readlink /proc/$$/fd/7; test ! -e /proc/$$/fd/3; exit 9")
    done = geneve(node, "slot", "exec", "--fd", "7", slot["id"], "--", *listing)
    assert (done.returncode, done.stdout) == (9, "/dev/net/tun\n")
    assert geneve(node, "slot", "exec", slot["id"], "--", "/no/such").returncode == 127
    assert geneve(node, "slot", "exec", slot["id"], "--").returncode == 2


def test_a_machine_is_started_from_c(lab: Lab, node: Node, tmp_path: Path) -> None:
    """By clients/c, against a real agent: the tap is reserved for nobody, and passed."""
    made = ["make", "-s", "-C", ROOT / "clients" / "c", f"BUILD={tmp_path}"]
    subprocess.run(made, check=True, timeout=120)
    far = asked(lab.nodes[1], "attach", "far", "--vpc", "blue")

    def example(*words: str) -> str:
        done = subprocess.run(
            [tmp_path / "example", *words], env=node.environment(), cwd=ROOT,
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    said = dict(line.split("=", 1) for line in example("reserve", "tap", "65534").splitlines())
    example("attach", "vm", "blue", said["slot"])
    words = (*AS_NOBODY, "env", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-c", ASKS)
    assert example("exec", said["slot"], *words, far["address"]) == "True\n"


@KINDS
def test_each_machine_finds_its_tap_as_new(node: Node, kind: str) -> None:
    """With virtio's header of 10 bytes and no packet information, whatever the last one set."""
    slot = reserved(node, kind)
    first = opened(node, slot)
    fcntl.ioctl(first, _TUNSETVNETHDRSZ, struct.pack("i", 12))
    os.close(first)
    with namespaces.entering(where(node, slot)):  # as a VMM that wants no header
        bare = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(bare, 0x400454CA, struct.pack("16sH22x", slot["tap"].encode(), 0x1002))
    os.close(bare)

    second = opened(node, slot)
    try:
        name, flags = struct.unpack_from(
            "16sH", fcntl.ioctl(second, _TUNGETIFF, bytes(40))
        )
        assert name.rstrip(b"\0").decode() == slot["tap"]
        assert flags & 0x5002 == 0x5002  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
        assert flags & 0x0100 == 0  # IFF_MULTI_QUEUE
        (size,) = struct.unpack("i", fcntl.ioctl(second, _TUNGETVNETHDRSZ, bytes(4)))
        assert size == taps.VNET_HEADER == 10
    finally:
        os.close(second)


@KINDS
def test_a_tap_that_is_open_is_told_so(node: Node, kind: str) -> None:
    """It has one queue; whoever has it keeps it, and when he has closed it the next one comes."""
    slot = reserved(node, kind)
    first = opened(node, slot)
    assert refused(node, "slot", "exec", slot["id"], "--", "true") == (6, "tap_busy")
    os.close(first)
    assert geneve(node, "slot", "exec", slot["id"], "--", "true").returncode == 0


def test_of_many_at_once_one_gets_it(lab: Lab, node: Node) -> None:
    """Its own descriptor; none is left in the agent for the others."""
    slot = reserved(node, "tap")
    got: list[int] = []
    codes: list[Code] = []
    ready = threading.Barrier(8)

    def take() -> None:
        with node.client() as client:
            ready.wait(30)
            try:
                got.append(client.open_tap(slot["id"]))
            except GeneveError as error:
                codes.append(error.code)

    takers = [threading.Thread(target=take) for _ in range(8)]
    for one in takers:
        one.start()
    for one in takers:
        one.join(60)

    assert (len(got), codes) == (1, [Code.TAP_BUSY] * 7)
    os.close(got[0])
    assert eventually(lambda: nobody_keeps_one(lab, node))
    os.close(opened(node, slot))


def test_who_goes_before_the_answer_leaves_nothing_open(lab: Lab, node: Node) -> None:
    """The tap can be opened again; likewise after the slot process has died meanwhile."""
    slot = reserved(node, "host-tap")
    for number in range(6):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(node.socket))
            request = f"POST /v1/taps/{slot['id']} HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
            caller.sendall(request.encode())
            if number % 2:
                kill_slot_process(lab.agents[node.name])

    def opens() -> bool:
        done = geneve(node, "slot", "exec", slot["id"], "--", "true")
        assert done.returncode == 0 or "(tap_busy)" in done.stderr
        return done.returncode == 0

    assert eventually(opens, 30)
    assert eventually(lambda: nobody_keeps_one(lab, node))


def test_a_key_does_not_repeat_a_descriptor(node: Node) -> None:
    """An answer that passed one is not given twice."""
    slot = reserved(node, "tap")
    body = (
        f"POST /v1/taps/{slot['id']} HTTP/1.1\r\nContent-Length: 0\r\n"
        "Idempotency-Key: once\r\n\r\n"
    ).encode()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(60)
        caller.connect(str(node.socket))
        for _ in range(2):
            caller.sendall(body)
            text, (tap,), _, _ = socket.recv_fds(caller, 65536, 8)
            os.close(tap)
            while b"}" not in text:
                text += caller.recv(65536)
            assert text.startswith(b"HTTP/1.1 200 ")
            assert b"Replayed" not in text


def test_what_cannot_be_opened_is_refused(node: Node) -> None:
    """With one line and a code each."""
    plain = reserved(node, "namespace")["id"]
    slots = asked(node, "slot", "list")["slots"]
    free = next(one["id"] for one in slots if (one["kind"], one["state"]) == ("tap", "ready"))
    words = ("--", "true")

    assert refused(node, "slot", "exec", plain, *words) == (2, "bad_request")
    assert refused(node, "slot", "exec", free, *words) == (4, "slot_taken")
    assert refused(node, "slot", "exec", "slot-9999", *words) == (3, "slot_not_found")
    assert refused(node, "slot", "exec", "9999", *words) == (2, "bad_name")
    assert states(node)[free] == "ready"


def test_others_than_the_sockets_users_get_none(node: Node) -> None:
    """As with any other request."""
    slot = reserved(node, "host-tap")
    done = subprocess.run(
        [*AS_NOBODY, COMMAND, "-j", "slot", "exec", slot["id"], "--", "true"],
        env={**node.environment(), "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False, cwd=os.sep,
    )  # fmt: skip
    assert json.loads(done.stderr)["error"]["code"] == "not_permitted"
