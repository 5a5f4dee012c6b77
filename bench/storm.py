# SPDX-License-Identifier: Apache-2.0
"""Attaches that come all at once, one to two hundred of them, while others are detached.

Every caller is a process of its own that was started and connected ahead and waits
for the same instant. From that instant each one's clock runs until its attach is
done, so it holds the waiting for its turn: for a CPU, for the agent, for the
kernel's lock. `storm.N.floor` is such callers that attach nothing.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from statistics import median

from bench import classic, harness, machine
from bench.classic import Form, Host
from bench.harness import Contestant, Row, percentile
from bench.netlink import RouteSocket
from bench.ours import Agent, agent, run_root
from bench.testbed import BenchError, interruptible, need, sweep, tunnel_kind, two_nodes
from geneve_ebpf.client import AgentClient
from geneve_ebpf.host.namespaces import entering

CONCURRENCY = (1, 2, 5, 10, 20, 50, 100, 200)
DETACHES = 16  # sandboxes that are detached during a storm, one after the other
PATIENCE = 120.0  # seconds for a whole storm
VPC, VNI = "bench", 4097
FORMS: dict[str, Form] = {form.name.removeprefix("classic."): form for form in classic.FORMS}
_names = count()

# What a caller does: prepares, and returns what is to be timed.
Caller = Callable[[], Callable[[], None]]
# A storm of so many callers; microseconds each.
Storm = Callable[[int], list[float]]


def storm(callers: list[Caller], meanwhile: Caller) -> list[float]:
    """
    Microseconds from the common start until each caller was done.

    `meanwhile` runs beside them from the same instant and is not timed. Raises
    BenchError when one of them fails.
    """
    everyone = [*callers, meanwhile]
    shared = mmap.mmap(-1, 8 * (len(everyone) + 1))
    ready, be_ready = os.pipe()
    go, start = os.pipe()
    children: list[int] = []
    try:
        gc.collect()
        gc.freeze()  # or every child copies what it only looks at
        for number, caller in enumerate(everyone):
            child = os.fork()
            if not child:
                os.close(start)
                _call(caller, number, shared, be_ready, go)
            children.append(child)
        _wait_for(len(everyone), ready)
        struct.pack_into("q", shared, 0, time.perf_counter_ns())
        os.close(start)
        start = -1
        _join(children)
    finally:
        gc.unfreeze()
        for descriptor in (ready, be_ready, go, start):
            if descriptor >= 0:
                os.close(descriptor)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    began, *ended = struct.unpack(f"{len(everyone) + 1}q", shared)
    return [(end - began) / 1e3 for end in ended[:-1]]


def _call(caller: Caller, number: int, shared: mmap.mmap, be_ready: int, go: int) -> None:
    """The life of a caller's process; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 1
    try:
        act = caller()
        os.write(be_ready, b".")
        os.read(go, 1)  # its end is the start
        act()
        struct.pack_into("q", shared, 8 * (number + 1), time.perf_counter_ns())
        status = 0
    except BaseException:
        traceback.print_exc(limit=3)
        sys.stderr.flush()
    finally:
        os._exit(status)


def _wait_for(callers: int, ready: int) -> None:
    end = time.monotonic() + PATIENCE
    while callers:
        if not select.select([ready], [], [], max(0, end - time.monotonic()))[0]:
            raise BenchError("the callers of a storm did not get ready")
        callers -= len(os.read(ready, callers))


def _join(children: list[int]) -> None:
    """Wait for all; takes those that ended off the list."""
    end = time.monotonic() + PATIENCE
    while children:
        child, status = os.waitpid(children[0], os.WNOHANG)
        if child:
            children.pop(0)
            if status:
                raise BenchError("a caller of a storm failed")
        elif time.monotonic() > end:
            raise BenchError("a storm did not end")
        else:
            time.sleep(0.001)


# Ours


def ours(node: Agent, concurrency: int) -> list[float]:
    """Through the agent, a connection each."""
    path = node.client.path
    before = [f"storm-{next(_names)}" for _ in range(DETACHES)]
    names = [f"storm-{next(_names)}" for _ in range(concurrency)]
    for name in before:
        node.client.request("PUT", f"/v1/sandboxes/{name}", {"vpc": VPC})
    node.wait_for_slots()

    def attacher(name: str) -> Callable[[], None]:
        client = AgentClient(path)
        client.request("GET", "/v1/version")

        def attach() -> None:
            client.request("PUT", f"/v1/sandboxes/{name}", {"vpc": VPC})

        return attach

    def detacher() -> Callable[[], None]:
        client = AgentClient(path)
        client.request("GET", "/v1/version")

        def detach() -> None:
            for name in before:
                client.request("DELETE", f"/v1/sandboxes/{name}")

        return detach

    try:
        return storm([partial(attacher, name) for name in names], detacher)
    finally:
        gone = [{"sandbox": name} for name in (*names, *before)]
        node.client.request("POST", "/v1/sandboxes:batch", {"detach": gone})


# The classic way


@contextmanager
def _own_sockets(host: Host) -> Iterator[Host]:
    """The host, with netlink sockets of this process."""
    from pyroute2 import IPRoute

    with entering(host.node.netns), IPRoute() as netlink, RouteSocket() as raw:
        yield replace(host, netlink=netlink, raw=raw)


def classic_storm(host: Host, form: Form, concurrency: int) -> list[float]:
    """The same in a classic form, a netlink socket each."""
    try:
        before = []
        for _ in range(DETACHES):
            tenant = host.tenant()
            ahead = form.prepare(host, tenant)
            with entering(host.node.netns):
                form.attach(host, tenant, ahead)
            before.append(tenant)
        ready = []
        for _ in range(concurrency):
            tenant = host.tenant()
            ready.append((tenant, form.prepare(host, tenant)))

        def attacher(tenant: classic.Tenant, ahead: object) -> Callable[[], None]:
            own = stack.enter_context(_own_sockets(host))
            return lambda: form.attach(own, tenant, ahead)

        def detacher() -> Callable[[], None]:
            own = stack.enter_context(_own_sockets(host))

            def detach() -> None:
                for tenant in before:
                    found = own.netlink.link_lookup(ifname=tenant.names[1])
                    own.netlink.link("del", index=found[0])

            return detach

        with ExitStack() as stack:  # in the children: they end without leaving it
            return storm([partial(attacher, *one) for one in ready], detacher)
    finally:
        host.clear()


def floor(concurrency: int) -> list[float]:
    """Callers that do nothing: what starting so many at once costs."""
    return storm([lambda: lambda: None] * concurrency, lambda: lambda: None)


def repeated(measure: Storm, size: int) -> Storm:
    """Storms of one size, until there are samples enough."""

    def storms(samples: int) -> list[float]:
        taken: list[float] = []
        while len(taken) < samples:
            taken += measure(size)
        return taken

    return storms


def name_of(concurrency: int, contestant: str) -> str:
    """The row's name."""
    return f"storm.{concurrency}.{contestant}"


def main(json_file: str | None, rounds: int, most: int = CONCURRENCY[-1]) -> None:
    """Run and report, up to `most` at once. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "iptables": "iptables"})
    sweep()
    about = machine.record()
    sizes = [size for size in CONCURRENCY if size <= most]
    with interruptible(), ExitStack() as stack:
        harness.say("making the nodes")
        kind = tunnel_kind()
        root = stack.enter_context(run_root())
        left, _ = stack.enter_context(two_nodes("ours"))
        served = stack.enter_context(agent(left, "agent", root, sizes[-1] + DETACHES + 8))
        body = {"vni": VNI, "prefixes": ["10.1.0.0/16"]}
        served.client.request("PUT", f"/v1/vpcs/{VPC}", body)
        host = stack.enter_context(classic.classic_host(kind))
        for form in FORMS.values():
            classic.verify(host, form)
        contestants = []
        for size in sizes:
            each: list[tuple[str, Storm]] = [
                ("floor", floor),
                ("ours", partial(ours, served)),
            ]
            each += [(name, partial(classic_storm, host, form)) for name, form in FORMS.items()]
            contestants += [
                Contestant(name_of(size, name), "us", max(size, 10), repeated(measure, size), 1, 0)
                for name, measure in each
            ]
        turns = harness.take_turns(contestants, rounds)
    about["tunnel"] = {"ours": "geneve", "classic": kind}
    about["detaches"] = DETACHES
    harness.report(
        "storm",
        about,
        turns.rows,
        [(name_of(size, name), name_of(size, "ours")) for size in sizes for name in FORMS],
        restless=turns.restless,
        failed=turns.failed,
        json_file=json_file,
        notes=[
            "storm.N.X: N attaches at the same instant, each a process that was connected before; "
            "from that instant until each is done.",
            f"Meanwhile {DETACHES} others are detached one after the other. Ours goes through the "
            "agent, which also destroys their slots and makes new ones.",
            "storm.N.floor: as many processes that attach nothing: what their own wake-ups cost.",
            *tails(turns.rows, sizes),
        ],
    )


def tails(rows: dict[str, Row], sizes: list[int]) -> Iterator[str]:
    """A line for each size: p99 of the classic forms over ours."""
    for size in sizes:
        p99 = {
            name: median(percentile(sorted(taken), 0.99) for taken in row.rounds)
            for name, row in rows.items()
            if row.rounds and name.startswith(f"storm.{size}.")
        }
        ours_p99 = p99.get(name_of(size, "ours"))
        if not ours_p99:
            continue
        shares = ", ".join(
            f"{form} {p99[row] / ours_p99:.1f}"
            for form in FORMS
            if (row := name_of(size, form)) in p99
        )
        yield f"p99 at {size} at once, each over ours (medians of the rounds'): {shares}."
