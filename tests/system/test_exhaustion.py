# SPDX-License-Identifier: Apache-2.0
"""Something that an agent stands on runs out or goes away; it says so, and goes on when it is back.

What is attached keeps its network meanwhile. (Maps full of routes: test_api_state.py,
test_map_keeping.py; memory: test_memory_shortage.py; a deleted namespace: test_slot_faults.py;
uplinks: test_uplink_changes.py.)
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from geneve_ebpf.abi import Address, EndpointKey, EndpointValue
from geneve_ebpf.dataplane import DataPlane
from geneve_ebpf.host import namespaces
from lab.network import Lab, inside, run
from tests.api import Agent, children
from tests.nodes import PREFIX, eventually, ping
from tests.patience import EXPENDABLE, PATIENCE

SLOTS = 3
BLUE = {"vni": 42, "prefixes": ["10.0.0.0/16", "fd00::/64"]}


class Bench:
    """One node whose state is on a file system of a quarter of a megabyte."""

    def __init__(self, lab: Lab, state: Path) -> None:
        self.lab = lab
        self.state = state
        (self.node,) = lab.nodes
        self.ask = Agent(self.node.socket)

    @property
    def pid(self) -> int:
        return self.lab.agents[self.node.name]

    @property
    def namespaces(self) -> Path:
        """Where those of its slots are kept."""
        return Path(self.node.directory, "run", self.node.name, "netns")

    def talks(self) -> bool:
        """Whether the two that are attached reach each other."""
        one, two = (self.ask.must("GET", f"/v1/sandboxes/{name}") for name in ("one", "two"))
        return ping(Path(one["slot"]["netns"]), two["address"]) == 3

    def whole(self) -> bool:
        """Whether the pool is full, nobody is leaving it and nothing is wrong."""
        found = self.ask.must("GET", "/v1/node")
        slots = found["slots"]
        return slots["ready"] == SLOTS and not slots["retiring"] and not found["problems"]


@pytest.fixture(scope="module")
def small_disk() -> Iterator[Path]:
    """A file system of a quarter of a megabyte."""
    path = Path(f"/run/{PREFIX}-small")
    path.mkdir()
    try:
        run("mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "gnv-small", path)
        yield path
        run("umount", path)
    finally:
        path.rmdir()


@pytest.fixture(scope="module")
def bench(small_disk: Path) -> Iterator[Bench]:
    with Lab(Path(f"/run/{PREFIX}-out"), f"{PREFIX}-out", patience=60 * PATIENCE) as lab:
        lab.make_nodes(1, SLOTS)
        made = Bench(lab, small_disk)
        config = made.node.config.read_text()
        state_root = f'state_root = "{made.node.directory}/state"'
        assert state_root in config
        made.node.config.write_text(config.replace(state_root, f'state_root = "{small_disk}"'))
        lab.start_agent(made.node)
        lab.wait_ready(made.node)
        made.ask.must("PUT", "/v1/vpcs/blue", BLUE)
        for name in ("one", "two"):
            made.ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})
        yield made
        made.ask.close()


@contextlib.contextmanager
def full_disk(bench: Bench) -> Iterator[None]:
    """Not a byte more can be written where the state is."""
    try:
        fill(bench.state / "ballast")
        yield
    finally:
        (bench.state / "ballast").unlink()


def fill(ballast: Path) -> None:
    """Have the file take all that is left of its disk."""
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(ballast).f_bfree == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_an_agent_starts_on_a_full_disk(bench: Bench, end: signal.Signals) -> None:
    """With the state that is there, and everybody attached."""
    before = bench.ask.must("GET", "/v1/state")
    with full_disk(bench):
        bench.ask.close()
        bench.lab.stop_agent(bench.node, end)
        fill(bench.state / "ballast")  # of what it has left, too
        bench.lab.start_agent(bench.node)
        bench.lab.wait_ready(bench.node)
        assert bench.ask.must("GET", "/v1/state") == before
        assert bench.talks()
        bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})
        bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert eventually(bench.whole, 30)
    bench.ask.must("PUT", "/v1/vpcs/red", {"vni": 43, "prefixes": ["10.0.0.0/16"]})
    bench.ask.must("DELETE", "/v1/vpcs/red")


def test_a_full_disk_refuses_changes_of_state_and_no_attach(bench: Bench) -> None:
    """The refused change is in neither file nor maps; with room again it is taken."""
    before = bench.ask.must("GET", "/v1/state")
    with full_disk(bench):
        # Of many names, some need a page that is not there.
        vpcs = [
            {"name": f"vpc-{n}", "vni": 1000 + n, "prefixes": [f"10.{n}.0.0/16"]}
            for n in range(1, 99)
        ]
        wish = {"vpcs": [*before["vpcs"], *vpcs], "vteps": [], "routes": []}
        status, answer = bench.ask.ask("PUT", "/v1/state", wish)

        assert (status, answer["error"]["code"]) == (500, "state_store"), answer
        assert "full" in answer["error"]["message"]
        assert bench.ask.must("GET", "/v1/state") == before
        assert bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})["address"]
        assert bench.ask.must("DELETE", "/v1/sandboxes/three")
        assert bench.talks()

    assert eventually(bench.whole, 30)
    bench.ask.must("PUT", "/v1/state", wish)
    bench.ask.must("PUT", "/v1/state", {**wish, "vpcs": before["vpcs"]})


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """The process can open nothing meanwhile; what is open stays so."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in itertools.count() if number not in taken)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_an_agent_without_descriptors_serves_whom_it_knows(bench: Bench) -> None:
    """An attach on a connection that is there needs none; who comes anew waits, and is served."""
    assert bench.ask.must("GET", "/v1/node")
    newcomer = Agent(bench.node.socket)
    newcomer._connection.timeout = 0.5
    with without_descriptors(bench.pid):
        with pytest.raises(OSError, match=r"timed out|reset|refused|closed|Broken pipe"):
            newcomer.ask("GET", "/healthz")
        verified = {"vpc": "blue", "verify": True}  # whose programs it has yet to open
        stands = bench.ask.must("PUT", "/v1/sandboxes/three", verified)
        assert stands["verified"]["passed"] is False
        assert "Too many open files" in stands["verified"]["probes"][0]["saw"]
        assert bench.talks()
    newcomer.close()

    assert eventually(lambda: answers(newcomer), 20)
    newcomer.close()
    again = bench.ask.must("PUT", "/v1/sandboxes/three", verified)
    assert (again["generation"], again["verified"]["passed"]) == (stands["generation"], True)
    bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert eventually(bench.whole, 30)


def answers(agent: Agent) -> bool:
    """Whether a request gets an answer."""
    try:
        return agent.ask("GET", "/healthz")[0] == 200
    except OSError:
        agent.close()
        return False


def test_a_slot_process_without_descriptors_says_so_and_recovers(bench: Bench) -> None:
    """Not whole meanwhile, with the reason; nothing half made stays."""
    (pid,) = children(bench.pid, "geneve_ebpf.agent.slot_process")
    with without_descriptors(pid):
        bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})
        assert eventually(lambda: "Too many open files" in problems(bench), 20), problems(bench)
        assert bench.talks()

    assert eventually(bench.whole, 30), problems(bench)
    bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert eventually(bench.whole, 30), problems(bench)


def test_a_slot_that_cannot_be_let_go_of_takes_no_other_with_it(bench: Bench) -> None:
    """One detached with it is made anew and keeps its next tenant, while it is tried again."""
    assert eventually(bench.whole, 30), problems(bench)
    stuck, other = (
        bench.ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})["slot"]
        for name in ("stuck", "other")
    )
    assert eventually(bench.whole, 30), problems(bench)
    # Letting go takes one mount away, and the file below the other stays.
    run("mount", "--bind", stuck["netns"], stuck["netns"])
    detach = [{"sandbox": name} for name in ("stuck", "other")]
    bench.ask.must("POST", "/v1/sandboxes:batch", {"detach": detach})

    def is_there(slot: dict[str, Any], state: str = "") -> bool:
        there = {one["id"]: one["state"] for one in bench.ask.must("GET", "/v1/slots")["slots"]}
        return slot["id"] in there and state in ("", there[slot["id"]])

    assert eventually(lambda: not is_there(other), 30)
    for name in ("three", "five"):  # two: the stuck one's place may be the first to be free
        bench.ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})
    assert eventually(lambda: is_there(other, "ready"), 30)
    wish = {"vpc": "blue", "slot": other["id"]}
    four = bench.ask.must("PUT", "/v1/sandboxes/four", wish)

    assert eventually(lambda: not is_there(stuck), 30)
    assert eventually(bench.whole, 30), problems(bench)
    one = bench.ask.must("GET", "/v1/sandboxes/one")
    assert ping(Path(four["slot"]["netns"]), one["address"]) == 3
    for name in ("three", "four", "five"):
        bench.ask.must("DELETE", f"/v1/sandboxes/{name}")
    assert eventually(bench.whole, 30), problems(bench)


def problems(bench: Bench) -> str:
    """What the node says is wrong."""
    found: dict[str, Any] = bench.ask.must("GET", "/v1/node")
    return "; ".join(found["problems"])


@contextlib.contextmanager
def few_files(bench: Bench, room: int) -> Iterator[None]:
    """So many more files can be where the namespaces are kept, each in one of its own."""
    found = os.statvfs(bench.namespaces)
    limit = found.f_files - found.f_ffree + room
    run("mount", "-o", f"remount,nr_inodes={limit}", bench.namespaces)
    try:
        yield
    finally:
        run("mount", "-o", f"remount,nr_inodes={found.f_files}", bench.namespaces)


@contextlib.contextmanager
def few_namespaces(bench: Bench, room: int) -> Iterator[None]:
    """The kernel makes no more network namespaces, on the whole machine."""
    limit = Path("/proc/sys/user/max_net_namespaces")
    before = limit.read_text()
    limit.write_text("0")
    try:
        yield
    finally:
        limit.write_text(before)


WAYS = [
    pytest.param(few_files, id="files"),
    pytest.param(
        few_namespaces,
        id="namespaces",
        marks=pytest.mark.skipif(not EXPENDABLE, reason="it would be the whole machine's limit"),
    ),
]
Way = Callable[[Bench, int], contextlib.AbstractContextManager[None]]


def says_why(bench: Bench) -> None:
    """In `problems`, all the time, and in metrics and log; one slot process tries it."""
    full = "slots cannot be made: [Errno 28] No space left on device"
    assert eventually(lambda: full in problems(bench), 20 * PATIENCE), problems(bench)
    makers = children(bench.pid, "geneve_ebpf.agent.slot_process")
    for _ in range(25):  # it is tried again meanwhile
        assert full in problems(bench)
        time.sleep(0.1)
    assert children(bench.pid, "geneve_ebpf.agent.slot_process") == makers
    assert "event=slot-failed" in bench.node.log.read_text()
    metrics = run(*inside(bench.node.netns, "curl", "-sS", "http://127.0.0.1:16081/metrics"))
    (count,) = re.findall(r"^geneve_ebpf_node_problems (\S+)$", metrics, re.MULTILINE)
    assert float(count) >= 1
    # What could not be made has left nothing.
    ids = {slot["id"] for slot in bench.ask.must("GET", "/v1/slots")["slots"]}
    assert set(os.listdir(bench.namespaces)) == ids
    with namespaces.entering(bench.node.netns):
        links = {name for _, name in socket.if_nameindex() if re.fullmatch(r"gnv\d+", name)}
    assert links == {one.replace("slot-", "gnv") for one in ids}


@pytest.mark.kernel
@pytest.mark.parametrize("way", WAYS)
def test_without_room_for_namespaces_what_is_ready_is_given_out(bench: Bench, way: Way) -> None:
    """Then nothing, with the reason; what is attached talks on, and room is made use of."""
    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)
    with way(bench, 0):
        names = [f"more-{number}" for number in range(SLOTS)]
        for name in names:
            bench.ask.must("PUT", f"/v1/sandboxes/{name}", {"vpc": "blue"})
        says_why(bench)
        status, answer = bench.ask.ask("PUT", "/v1/sandboxes/late", {"vpc": "blue"})
        assert (status, answer["error"]["code"]) == (503, "no_slot")
        assert "No space left on device" in answer["error"]["hint"]
        assert bench.talks()

    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)
    for name in names:
        bench.ask.must("DELETE", f"/v1/sandboxes/{name}")
    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)


@pytest.mark.kernel
@pytest.mark.parametrize("way", WAYS)
def test_a_start_without_room_for_all_its_slots_serves_with_some(bench: Bench, way: Way) -> None:
    """The rest is made when there is room."""
    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)
    more = SLOTS + 3
    config = bench.node.config.read_text()

    def again(slots: int) -> None:
        bench.ask.close()
        bench.lab.stop_agent(bench.node, signal.SIGKILL)
        bench.node.config.write_text(config.replace(f"slots = {SLOTS}", f"slots = {slots}"))
        bench.lab.start_agent(bench.node)
        assert eventually(lambda: answers(bench.ask), 30 * PATIENCE)

    def ready() -> int:
        found: int = bench.ask.must("GET", "/v1/node")["slots"]["ready"]
        return found

    with way(bench, 1):
        again(more)
        says_why(bench)
        assert SLOTS <= ready() < more
        assert bench.talks()
    assert eventually(lambda: ready() == more, 30 * PATIENCE), problems(bench)

    again(SLOTS)
    for name in range(more - SLOTS):
        bench.ask.must("PUT", f"/v1/sandboxes/more-{name}", {"vpc": "blue"})
        bench.ask.must("DELETE", f"/v1/sandboxes/more-{name}")
    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)


def test_a_full_map_refuses_an_attach_and_nothing_else(bench: Bench) -> None:
    """Its slot stays ready and whoever is attached stays so; with room again it is taken."""
    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)
    plane = DataPlane.open(bench.namespaces.parent)
    table = plane._endpoints
    most = table.max_entries - table.count()
    dual = {"vpc": "blue", "address": "10.0.0.200", "address6": "fd00::200"}
    nobody = EndpointValue(generation=1)
    others = [EndpointKey(9999, Address.of(IPv4Address(number))) for number in range(most)]
    try:
        table.set_many((key, nobody) for key in others[1:])
        # There is room for one of its addresses.
        assert bench.ask.code("PUT", "/v1/sandboxes/three", dual) == "map_full"
        table.set(others[0], nobody)
        assert bench.ask.code("PUT", "/v1/sandboxes/three", {"vpc": "blue"}) == "map_full"
        row = {"attach": [{"sandbox": f"row-{number}", "vpc": "blue"} for number in (1, 2)]}
        results = bench.ask.must("POST", "/v1/sandboxes:batch", row)["results"]
        assert [one["error"]["code"] for one in results] == ["map_full"] * 2
        assert table.count() == table.max_entries
        assert bench.whole()
        assert bench.talks()
    finally:
        table.remove_many(others)
        plane.close()
    # What the row was refused was nobody's: it need not rest.
    for number in range(2, 100):
        asked_for = {"vpc": "blue", "address": f"10.0.0.{number}", "slot": "slot-999999"}
        _, answer = bench.ask.ask("PUT", "/v1/sandboxes/three", asked_for)
        assert "row-" not in answer["error"]["message"]
    bench.ask.must("PUT", "/v1/sandboxes/three", dual)
    bench.ask.must("DELETE", "/v1/sandboxes/three")
    assert eventually(bench.whole, 30 * PATIENCE), problems(bench)


@pytest.mark.parametrize(
    "take_away",
    [
        pytest.param(("umount", "-l"), id="unmounted"),
        pytest.param(("mount", "-t", "bpf", "bpf"), id="covered"),
    ],
)
def test_pins_that_are_gone_cost_the_next_agent_its_sandboxes(
    bench: Bench, take_away: tuple[str, ...]
) -> None:
    """The agent goes on by what it holds. Its successor says who is lost, and cuts them off."""
    lost = Path(bench.ask.must("GET", "/v1/sandboxes/one")["slot"]["netns"])
    with subprocess.Popen(
        inside(lost, "sleep", "600"), start_new_session=True
    ) as lingering:  # keeps the namespace, and with it a way out if there were one
        try:
            inode = os.stat(lost).st_ino
            assert eventually(lambda: os.stat(f"/proc/{lingering.pid}/ns/net").st_ino == inode)
            run(*take_away, Path(bench.node.directory, "run", bench.node.name, "bpf"))
            bench.ask.must("PUT", "/v1/sandboxes/three", {"vpc": "blue"})
            assert bench.talks()

            bench.ask.close()
            bench.lab.stop_agent(bench.node, signal.SIGKILL)
            bench.lab.start_agent(bench.node)
            bench.lab.wait_ready(bench.node)

            assert bench.ask.must("GET", "/v1/sandboxes")["sandboxes"] == []
            assert set(bench.ask.must("GET", "/v1/node")["lost"]) == {"one", "two", "three"}
            two = bench.ask.must("PUT", "/v1/sandboxes/two", {"vpc": "blue"})
            assert ping(Path(f"/proc/{lingering.pid}/ns/net"), two["address"], wait=0.3) == 0
            bench.ask.must("PUT", "/v1/sandboxes/one", {"vpc": "blue"})
            assert bench.talks()  # at once
            assert eventually(bench.whole, 30), problems(bench)
        finally:
            lingering.kill()
