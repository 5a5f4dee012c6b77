# SPDX-License-Identifier: Apache-2.0
"""What `script/demo` shows: two nodes, two VPCs with the same addresses, packets between them.

It checks what it shows, and ends with status 1 if something is not as it says.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from geneve_ebpf.errors import GeneveError
from geneve_ebpf.host import namespaces
from lab.network import UPLINK, Lab, Node

DIRECTORY = Path("/run/gnv-demo")
LOCK = Path("/run/gnv-demo.lock")
ETH_P_ALL = 0x0003  # a tap for one protocol alone would sit behind our program
GENEVE_PORT = 6081
MEGABYTES = 256

# VPC -> VNI. Both have the very same prefixes.
VPCS = {"blue": 4097, "red": 4098}
SPANS = (
    ("10.0.0.0/16", {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}),
    ("fd00:10::/48", {"node1": "fd00:10:0:1::/64", "node2": "fd00:10:0:2::/64"}),
)
# sandbox -> node, VPC, addresses
SANDBOXES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "blue-1": ("node1", "blue", ("10.0.1.10", "fd00:10:0:1::10")),
    "blue-2": ("node2", "blue", ("10.0.2.10", "fd00:10:0:2::10")),
    "blue-3": ("node1", "blue", ("10.0.1.11", "fd00:10:0:1::11")),
    "red-1": ("node1", "red", ("10.0.1.10", "fd00:10:0:1::10")),
    "red-2": ("node2", "red", ("10.0.2.10", "fd00:10:0:2::10")),
    "red-only": ("node2", "red", ("10.0.2.77",)),
}

GREET = """
import socket, sys
server = socket.create_server(("0.0.0.0", 8080))
print("listening", flush=True)
while True:
    with server.accept()[0] as peer:
        peer.sendall(sys.argv[1].encode())
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 8080), timeout=5) as peer:
    print(peer.recv(100).decode())
"""
FORGE = """
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
source, to = (socket.inet_aton(text) for text in sys.argv[1:])
raw.sendto(bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]) + source + to, (sys.argv[2], 0))
"""
SINK = """
import socket, time
server = socket.create_server(("0.0.0.0", 9000))
print("listening", flush=True)
with server.accept()[0] as peer:
    buffer, got, start = bytearray(1 << 20), 0, time.monotonic()
    while count := peer.recv_into(buffer):
        got += count
    print(got, time.monotonic() - start, flush=True)
"""
SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=5) as peer:
    for _ in range(int(sys.argv[2])):
        peer.sendall(bytes(1 << 20))
"""


_libc = ctypes.CDLL(None)


class Surprise(Exception):
    """Something did not go as the demo says it does."""


class Demo:
    """The lab while it is up, and what was started in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.processes: list[subprocess.Popen[str]] = []
        self.attached: dict[str, dict[str, Any]] = {}

    def node(self, name: str) -> Node:
        """A node by its name."""
        return next(node for node in self.lab.nodes if node.name == name)

    def command(self, node: str, *words: str, json_too: bool = False) -> str:
        """Run `geneve-ebpf` against a node's agent, as a user would; its stdout."""
        done = subprocess.run(
            ["geneve-ebpf", *(["-j"] if json_too else []), *words],
            env=self.node(node).environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Surprise(f"geneve-ebpf {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def inside(self, sandbox: str, *words: str) -> list[str]:
        """The command line that runs something in a sandbox's namespace."""
        return ["geneve-ebpf", "netns-exec", sandbox, "--", *words]

    def run(self, sandbox: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run something in a sandbox to its end."""
        return subprocess.run(
            self.inside(sandbox, *words),
            env=self.node(SANDBOXES[sandbox][0]).environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def start(self, sandbox: str, program: str, *words: str) -> subprocess.Popen[str]:
        """Start a Python program in a sandbox, and wait until it listens."""
        process = subprocess.Popen(
            self.inside(sandbox, sys.executable, "-c", program, *words),
            env=self.node(SANDBOXES[sandbox][0]).environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=end_with_demo,
        )
        self.processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "listening":
            raise Surprise(f"nothing listens in {sandbox}")
        return process

    def end_processes(self) -> None:
        """End what was started in sandboxes."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes = []

    def show(self) -> None:
        """The whole walk."""
        chapter("Two nodes")
        start = time.monotonic()
        self.lab.up(nodes=2, slots=8)
        for node in self.lab.nodes:
            facts = json.loads(self.command(node.name, "node", "status", json_too=True))
            say(
                f"{node.name}: VTEP {facts['vtep']}, {facts['slots']['ready']} slots ready,"
                f" MTU {facts['mtu']} in the sandboxes"
            )
        say(f"programs compiled, loaded and pinned, slots made: {time.monotonic() - start:.1f} s")

        chapter("Two VPCs, the same prefixes in both")
        for name, vni in VPCS.items():
            self.lab.connect(name, vni, *SPANS)
            for prefix, blocks in SPANS:
                places = ", ".join(f"{block} on {node}" for node, block in blocks.items())
                say(f"{name}: VNI {vni}, {prefix}; {places}")

        chapter("Attach: everything slow is done already")
        self.attach()

        chapter("Ping, over Geneve and on one node")
        self.ping("blue-1", "10.0.2.10", "blue-2, on the other node")
        self.ping("red-1", "10.0.2.10", "red-2, on the other node")
        self.ping("blue-1", "10.0.1.11", "blue-3, on the same node: no tunnel")
        self.ping("blue-1", "fd00:10:0:2::10", "blue-2, by IPv6 over the same IPv4 underlay")
        self.ping("blue-1", "fd00:10:0:1::11", "blue-3, by IPv6")

        chapter("What is on the wire, as node2's uplink sees it")
        for sandbox in ("blue-1", "red-1"):
            self.wire(sandbox, "10.0.2.10")
        self.wire("blue-1", "fd00:10:0:2::10")

        chapter("The same address is another machine in each VPC")
        self.greet()

        chapter("The VPCs do not see each other")
        self.ping("red-1", "10.0.2.77", "red-only, which only red has")
        self.no_ping("blue-1", "10.0.2.77", "blue has nobody there")
        self.run("blue-1", sys.executable, "-c", FORGE, "10.0.9.9", "10.0.2.10")
        say("blue-1 sends a packet that claims to come from 10.0.9.9: see the drops below")

        chapter("TCP between the nodes")
        self.stream()

        chapter("Every packet that did not get through has its reason")
        for node in self.lab.nodes:
            say(f"{node.name}: geneve-ebpf drops")
            indent(self.command(node.name, "drops"))

        chapter("Detach")
        for name in ("blue-2", "red-2"):
            say(self.command("node2", "detach", name).strip())

    def attach(self) -> None:
        """Attach every sandbox, and say how long each took."""
        for sandbox, (node, vpc, addresses) in SANDBOXES.items():
            words = ["attach", sandbox, "--vpc", vpc]
            for address in addresses:
                words += ["--ip", address]
            answer = json.loads(self.command(node, *words, json_too=True))
            self.attached[sandbox] = answer
            took = answer["timing_ns"]["total"] / 1000
            say(f"{node}$ geneve-ebpf {' '.join(words)}".ljust(80) + f"{took:8.0f} us")
        say("(inside the agent; the command around it takes a tenth of a second to start)")

    def ping(self, sandbox: str, address: str, who: str) -> None:
        """Three echoes that must come back."""
        done = self.run(sandbox, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", address)
        times = re.search(r"= [\d.]+/([\d.]+)/", done.stdout)
        if done.returncode or " 0% packet loss" not in done.stdout or times is None:
            raise Surprise(f"{sandbox} cannot reach {address}: {done.stdout}{done.stderr}")
        say(good(f"{sandbox} -> {address} ({who}): 3 of 3, {times[1]} ms"))

    def no_ping(self, sandbox: str, address: str, why: str) -> None:
        """An echo that must not come back."""
        done = self.run(sandbox, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", address)
        if done.returncode == 0:
            raise Surprise(f"{sandbox} reached {address}: {done.stdout}")
        say(good(f"{sandbox} -> {address}: no answer, as it should be ({why})"))

    def wire(self, sandbox: str, address: str) -> None:
        """Show the headers of one echo request as it arrives at the other node."""
        with namespaces.entering(self.node("node2").netns):
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        with tap:
            tap.bind((UPLINK, ETH_P_ALL))
            self.run(sandbox, "ping", "-n", "-c", "1", "-W", "2", address)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                if not select.select([tap], [], [], 0.2)[0]:
                    continue
                text = described(tap.recv(2048))
                if text:
                    say(f"{sandbox}'s ping: {text}")
                    return
        raise Surprise("no Geneve packet came by")

    def greet(self) -> None:
        """Ask 10.0.2.10:8080 from both VPCs."""
        for name in ("blue-2", "red-2"):
            self.start(name, GREET, f"I am {name}")
        for asker, expected in (("blue-1", "I am blue-2"), ("red-1", "I am red-2")):
            done = self.run(asker, sys.executable, "-c", ASK, "10.0.2.10")
            if done.stdout.strip() != expected:
                raise Surprise(f"{asker} heard {done.stdout!r}{done.stderr}")
            say(good(f"{asker} asks 10.0.2.10:8080 over TCP and hears: {expected}"))

    def stream(self) -> None:
        """Move some megabytes and say how fast that was."""
        sink = self.start("blue-2", SINK)
        done = self.run("blue-1", sys.executable, "-c", SOURCE, "10.0.2.10", str(MEGABYTES))
        output, _ = sink.communicate(timeout=30)
        got, seconds = output.split()
        if done.returncode or int(got) != MEGABYTES << 20:
            raise Surprise(f"{got} bytes arrived: {done.stderr}")
        rate = int(got) * 8 / float(seconds) / 1e9
        say(good(f"blue-1 -> blue-2: {MEGABYTES} MiB in {float(seconds):.2f} s, {rate:.1f} Gbit/s"))
        say("(one stream, both ends and both nodes on this machine's processors)")


def described(frame: bytes) -> str:
    """The headers of a Geneve frame over IPv4, in one line; "" for any other frame."""
    ip = frame[14:]
    if len(ip) < 28 or ip[9] != socket.IPPROTO_UDP:
        return ""
    udp = ip[(ip[0] & 15) * 4 :]
    geneve = udp[8:]
    if int.from_bytes(udp[2:4], "big") != GENEVE_PORT or len(geneve) < 8 + 14 + 20:
        return ""
    inner = geneve[8 + (geneve[0] & 63) * 4 + 14 :]
    outside, inside = addresses_of(ip), addresses_of(inner)
    return (
        f"{' > '.join(outside)}  UDP {int.from_bytes(udp[0:2], 'big')} > {GENEVE_PORT}"
        f"  Geneve VNI {int.from_bytes(geneve[4:7], 'big')}  [ {' > '.join(inside)} ]"
    )


def addresses_of(ip: bytes) -> tuple[str, str]:
    """Source and destination of an IP packet of either family."""
    if ip[0] >> 4 == 6:
        return (
            socket.inet_ntop(socket.AF_INET6, ip[8:24]),
            socket.inet_ntop(socket.AF_INET6, ip[24:40]),
        )
    return socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])


def end_with_demo() -> None:
    """In a child: end when the demo does, were it by SIGKILL."""
    pr_set_pdeathsig = 1
    _libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def coloured() -> bool:
    """Whether the reader is a person at a terminal who did not ask for NO_COLOR."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb")
    return sys.stdout.isatty() and not plain


def chapter(title: str) -> None:
    """Open a part of the show."""
    print(f"\n\x1b[1m== {title}\x1b[0m" if coloured() else f"\n== {title}", flush=True)


def say(text: str) -> None:
    """One line of the show."""
    print(f"   {text}", flush=True)


def indent(text: str) -> None:
    """A command's output."""
    for line in text.splitlines():
        print(f"      {line}", flush=True)


def good(text: str) -> str:
    """A line that was checked."""
    return f"\x1b[32mok\x1b[0m  {text}" if coloured() else f"ok  {text}"


def clean(lab: Lab) -> None:
    """Remove what is left of a lab, undisturbed by further signals."""
    before = [(n, signal.signal(n, signal.SIG_IGN)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        lab.down()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def end(*_: object) -> NoReturn:
    """SIGTERM and SIGHUP end the demo as ^C does: with everything cleaned up."""
    raise KeyboardInterrupt


def main() -> int:
    """Show, check, clean up; the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    lock = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("demo: another demo is running on this machine", file=sys.stderr)
        return 1
    left = Lab.recorded(DIRECTORY)
    if left is not None:
        say("an earlier demo was cut short; removing what it left")
        clean(left)
    demo = Demo(Lab(DIRECTORY, "gnv-demo"))
    status = 1
    try:
        demo.show()
        status = 0
    except (Surprise, GeneveError, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        print(f"demo: {error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr, flush=True)
        status = 130
    finally:
        chapter("Cleaning up")
        demo.end_processes()
        try:
            clean(demo.lab)
            say("nodes, sandboxes, programs and pins are gone")
        except (GeneveError, RuntimeError, OSError) as error:
            status = status or 1
            print(f"demo: something is left in {DIRECTORY}: {error}", file=sys.stderr)
        LOCK.unlink(missing_ok=True)
    if status == 0:
        chapter("Go on")
        say("sudo lab/nodes up         two nodes that stay, to play with; it says how")
        say("sudo script/test          the whole test suite")
        say("docs/architecture.md      how a packet and an attach go through the files")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
