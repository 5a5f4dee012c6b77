# SPDX-License-Identifier: Apache-2.0
"""What it takes to put a sandbox into its tenant's network: ours and the classic way.

All in one run, in turn. Before the first clock starts every way has attached
once and a ping has passed through its tunnel.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from itertools import count
from pathlib import Path

from bench import classic, harness, machine
from bench.compiled import HERE, compiled, nanoseconds
from bench.floor import Floor
from bench.harness import Contestant
from bench.ours import Agent, LibraryNode, agent, join, library_node, run_root
from bench.testbed import (
    BenchError,
    answers,
    interruptible,
    need,
    pinned,
    sweep,
    tunnel_kind,
    two_cpus,
    two_nodes,
)
from geneve_ebpf.agent.config import Placement
from geneve_ebpf.model import Endpoint, Route, RouteKind, Vtep, endpoint_mac

ROUNDS = 8
VPC, VNI = "bench", 4097
OURS = 64  # attaches of ours in a round; so many slots are made for each
BATCH = 64  # attaches in one request of attach.batch64
BATCHES = 4  # such requests in a round
# The agent's slots: after a round's most attaches more than the low watermark, a quarter, is
# left, so that making new ones waits for the end of it.
POOL = BATCH * (BATCHES + 1) * 4 // 3 + 8
CLIENT = HERE.parent / "clients" / "c" / "geneve_ebpf.c"
_names = count()
_hosts = count(256)  # addresses of the library's sandboxes, none used twice


def library_attach(node: LibraryNode, cpu: int, samples: int) -> list[float]:
    """DataPlane.attach: from the call to its return, when the kernel delivers."""
    node.make_slots(samples)
    taken: list[float] = []
    used: list[int] = []
    calls = []
    for slot in node.indexes[:samples]:
        address = IPv4Address("10.1.0.0") + next(_hosts)
        calls.append(
            (slot, f"library-{next(_names)}", Endpoint(VNI, address, endpoint_mac(address)))
        )
    try:
        gc.collect()
        gc.freeze()
        with pinned(cpu):
            for slot, sandbox, endpoint in calls:
                start = time.perf_counter_ns()
                node.plane.attach(slot, sandbox, endpoint)
                taken.append((time.perf_counter_ns() - start) / 1e3)
                used.append(slot)
    finally:
        gc.unfreeze()
        for slot in used:
            node.plane.detach(slot)
        node.destroy_slots(used)
    return taken


def slot_make(node: LibraryNode, samples: int) -> list[float]:
    """Make slots that nobody uses, in their own process; its own clock, one slot each."""
    before = len(node.indexes)
    taken = node.make_slots(before + samples)
    fresh = node.indexes[-samples:]
    for slot in fresh:
        node.plane.retire(slot)
    node.destroy_slots(fresh)
    return taken


def agent_attach(node: Agent, cpu: int, samples: int, **more: bool) -> list[float]:
    """PUT /v1/sandboxes/{id}: from the first byte sent to the parsed answer."""
    node.wait_for_slots()
    taken: list[float] = []
    paths = [f"/v1/sandboxes/agent-{next(_names)}" for _ in range(samples)]
    ask = node.caller(cpu).request
    done = 0
    try:
        gc.collect()
        gc.freeze()
        with pinned(cpu):
            for path in paths:
                start = time.perf_counter_ns()
                status, _ = ask("PUT", path, {"vpc": VPC, **more})
                taken.append((time.perf_counter_ns() - start) / 1e3)
                done += 1
                if status != 201:
                    raise BenchError(f"PUT {path} answered {status}")
    finally:
        gc.unfreeze()
        for path in paths[:done]:
            ask("DELETE", path)
    return taken


def agent_batch(node: Agent, cpu: int, batches: int) -> list[float]:
    """POST /v1/sandboxes:batch with BATCH attaches: the call, divided by their number."""
    node.wait_for_slots()
    taken: list[float] = []
    names: list[str] = []
    ask = node.client.request
    try:
        gc.collect()
        gc.freeze()
        with pinned(cpu):
            for _ in range(batches):
                items = [{"sandbox": f"batch-{next(_names)}", "vpc": VPC} for _ in range(BATCH)]
                names += [item["sandbox"] for item in items]
                start = time.perf_counter_ns()
                _, answer = ask("POST", "/v1/sandboxes:batch", {"attach": items})
                taken.append((time.perf_counter_ns() - start) / 1e3 / BATCH)
                if any(item["status"] != 201 for item in answer["results"]):
                    raise BenchError("not every attach of a batch was answered 201")
    finally:
        gc.unfreeze()
        ask("POST", "/v1/sandboxes:batch", {"detach": [{"sandbox": name} for name in names]})
    return taken


def agent_in_c(program: Path, node: Agent, cpu: int, samples: int) -> list[float]:
    """As `agent_attach`, by the client in C; its own clock."""
    node.wait_for_slots()
    socket = f"unix://{node.settings.run_directory}/api.sock"
    return nanoseconds(program, socket, cpu, VPC, f"c-{next(_names)}", samples)


def verify(library: LibraryNode, served: Agent) -> None:
    """
    A ping from a sandbox attached by the library to one attached by the agent,
    over Geneve. Raises BenchError.
    """
    join(served, VPC, VNI, library.node.address, "10.1.0.0/16")
    library.plane.add_vtep(Vtep(served.node.address))
    library.plane.set_routes(
        [(VNI, Route("", IPv4Network("10.2.0.0/16"), RouteKind.REMOTE, served.node.address))]
    )
    library.make_slots(1)
    slot = library.indexes[0]
    here, there = IPv4Address("10.1.0.9"), IPv4Address("10.2.0.9")
    served.attach("verify", VPC, str(there))
    library.plane.attach(slot, "verify", Endpoint(VNI, here, endpoint_mac(here)))
    passed = answers(library.netns(slot), there)
    counters = library.plane.detach(slot)
    served.client.request("DELETE", "/v1/sandboxes/verify")
    library.destroy_slots([slot])
    if not passed or not counters.tx_remote.packets or not counters.rx_remote.packets:
        raise BenchError("no ping passes between two sandboxes of ours over Geneve")


PAIRS = [
    ("classic.script", "attach.agent"),
    ("classic.script", "attach.agent_one_cpu"),
    ("classic.script", "attach.library"),
    ("classic.netlink", "attach.agent"),
    ("classic.netlink", "attach.library"),
    ("classic.netlink_raw", "attach.library"),
    ("classic.pooled_address", "attach.agent"),
    ("classic.pooled", "attach.agent"),
    ("classic.pooled", "attach.agent_one_cpu"),
    ("classic.pooled", "attach.library"),
    ("classic.pooled_raw", "attach.agent"),
    ("classic.pooled_raw", "attach.library"),
    ("classic.pooled_first", "attach.agent_first"),
    ("attach.agent", "socket.floor"),
    ("attach.agent_c", "socket.floor"),
    ("classic.pooled", "attach.agent_c"),
    ("make.slot", "classic.netlink"),
]


def main(json_file: str | None, rounds: int) -> None:
    """Run and report. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "iptables": "iptables"})
    sweep()
    about = machine.record()
    first, second = two_cpus()
    placement = Placement(agent_cpu=first, slot_cpu=second)
    with interruptible(), ExitStack() as stack:
        harness.say("making the nodes")
        kind = tunnel_kind()
        root = stack.enter_context(run_root())
        left, right = stack.enter_context(two_nodes("ours"))
        served = stack.enter_context(agent(right, "agent", root, POOL, placement))
        library = stack.enter_context(library_node(left, root, second))
        host = stack.enter_context(classic.classic_host(kind))
        floor = Floor(root)
        in_c = compiled("attach.c", root, CLIENT)
        harness.say("pinging through each of them")
        verify(library, served)
        for form in classic.FORMS:
            classic.verify(host, form)

        contestants = [
            Contestant(
                "attach.library", "us", OURS, partial(library_attach, library, second), OURS
            ),
            Contestant("attach.agent", "us", OURS, partial(agent_attach, served, second), OURS),
            Contestant(
                "attach.agent_one_cpu", "us", OURS, partial(agent_attach, served, first), OURS
            ),
            Contestant(
                "attach.library_first", "us", 1, partial(library_attach, library, second), 1, 0
            ),
            Contestant("attach.agent_first", "us", 1, partial(agent_attach, served, second), 1, 0),
            Contestant(
                "classic.pooled_first",
                "us",
                1,
                partial(classic.measure, host, classic.Pooled()),
                1,
                0,
            ),
            Contestant(
                "attach.verify",
                "us",
                OURS,
                partial(agent_attach, served, second, verify=True),
                OURS,
            ),
            Contestant("attach.batch64", "us", BATCHES, partial(agent_batch, served, second), 2),
            *(
                [
                    Contestant(
                        "attach.agent_c", "us", OURS, partial(agent_in_c, in_c, served, second)
                    ),
                    Contestant(
                        "attach.agent_c_one_cpu",
                        "us",
                        OURS,
                        partial(agent_in_c, in_c, served, first),
                    ),
                ]
                if in_c
                else []
            ),
            Contestant(floor.row, "us", 200, lambda n: floor.measure(n, first, second)),
            Contestant(f"{floor.row}_one_cpu", "us", 200, lambda n: floor.measure(n, first, first)),
            Contestant("make.slot", "us", 16, partial(slot_make, library)),
            *(
                Contestant(
                    form.name,
                    "us",
                    8 if form.name == "classic.script" else 16,
                    partial(classic.measure, host, form),
                    2,
                )
                for form in classic.FORMS
            ),
        ]
        turns = harness.take_turns(contestants, rounds)
    about["placement"] = {
        "agent": first,
        "slot process": second,
        "caller": second,
        "caller of rows …_one_cpu": first,
        "classic": "any CPU",
    }
    about["tunnel"] = {"ours": "geneve", "classic": kind}
    harness.report(
        "attach",
        about,
        turns.rows,
        PAIRS,
        restless=turns.restless,
        failed=turns.failed,
        json_file=json_file,
        notes=notes(kind, floor),
    )


def notes(kind: str, floor: Floor) -> list[str]:
    """What the rows mean, in the order of the table."""
    language = "C" if floor.program else "Python"
    return [
        f"Ours tunnels over Geneve, the classic way over {kind}; a ping passed through each first.",
        "attach.library: DataPlane.attach. attach.agent: PUT /v1/sandboxes/{id} on the agent's "
        "socket, caller on another CPU than the agent; …_one_cpu: on the same; attach.agent_c…: "
        "the caller is a program in C.",
        "attach.verify: as attach.agent, with `verify`.",
        f"attach.batch64: {BATCH} in one request, the request's time divided by {BATCH}.",
        "…_first: after a pause and other contestants' work, one at a time.",
        f"{floor.row}: an echo of the same size that does no work, in {language}.",
        "make.slot: one slot of ours prepared before any attach: work that was moved, not saved.",
        *(f"{form.name}: {form.text}." for form in classic.FORMS),
    ]
