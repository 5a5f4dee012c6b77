# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: what it must be before it serves a node, and a node without one.

What it does then is in life.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from geneve_ebpf.agent.config import AgentConfig, load
from geneve_ebpf.agent.latency import Recorder
from geneve_ebpf.agent.life import Agent, refuse_in_use
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.server import CONNECTIONS_MAX
from geneve_ebpf.control.attached_log import AttachedLog
from geneve_ebpf.control.rest_log import RestLog
from geneve_ebpf.control.state import Rules
from geneve_ebpf.control.store import Store
from geneve_ebpf.dataplane import DataPlane, adopt, bring_up, tear_down
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import namespaces
from geneve_ebpf.model import NodeSettings, SlotState

ATTACHED = "attached"  # the file of who is, for after a reboot
# A waiting thread gets the interpreter after this many seconds (default 5 ms).
SWITCH_INTERVAL = 0.0001


def run(
    config: Path,
    slots: int | None = None,
    metrics_listen: str | None = None,
    tap_slots: int | None = None,
    host_tap_slots: int | None = None,
) -> None:
    """Serve the node that a configuration file describes, until SIGTERM or `node down`.

    slots, tap_slots, host_tap_slots: ready slots to keep; metrics_listen: address and port of the
    exporter, "" for none; both instead of the file's. Raises GeneveError:
    BAD_CONFIG, NOT_PERMITTED, MOUNT_NAMESPACE, AGENT_RUNNING, STATE_STORE, and
    what `bring_up` raises. A start that fails leaves running what ran before.
    """
    serve(load(config, slots, metrics_listen, tap_slots, host_tap_slots))


def serve(config: AgentConfig) -> None:
    """As `run`, with the configuration read already."""
    log = Log()
    settings = config.node
    _require_root()
    namespaces.require_machine_mounts()
    with ExitStack() as stack:
        stack.enter_context(_sole_agent(settings))
        stack.enter_context(namespaces.entering(settings.netns))
        cpus = os.sched_getaffinity(0)
        placement = config.placement
        placement.refuse_others(cpus)
        os.sched_setaffinity(0, placement.cpus("agent", cpus))
        _raise_descriptor_limit()
        sys.setswitchinterval(SWITCH_INTERVAL)
        log.info("starting", node=settings.name, vtep=settings.vtep, pid=os.getpid())
        gc.disable()  # until what is loaded now has been frozen
        store = stack.enter_context(
            contextlib.closing(Store(settings.state_directory / "state.db"))
        )
        try:
            state = store.load(Rules(settings.guest, settings.vtep))
            adopted = adopt(settings)
            if adopted is None:
                log.info("bringing-up", uplinks=",".join(settings.uplinks))
            dataplane = stack.enter_context(contextlib.closing(adopted or bring_up(settings)))
        except BaseException:
            if store.fresh:
                store.remove()
            raise
        recorder = stack.enter_context(
            contextlib.closing(Recorder(settings.run_directory / "latency"))
        )
        rests = stack.enter_context(contextlib.closing(RestLog(settings.run_directory / "resting")))
        attached = stack.enter_context(
            contextlib.closing(AttachedLog(settings.state_directory / ATTACHED))
        )
        agent = Agent(config, dataplane, cpus, log, unseen=adopted is not None)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(agent.live(store, state, recorder, rests, attached))
    if agent.failure is not None:
        raise agent.failure
    log.info("stopped", node=settings.name)


def down(settings: NodeSettings, *, force: bool = False) -> tuple[int, int]:
    """Take down a node that no agent serves; (sandboxes, slots) that it still had.

    Removes what `POST /v1/node:down` does. Raises NODE_IN_USE while sandboxes are
    attached or slots reserved, unless `force`; LAYOUT_MISMATCH likewise if another version
    made it, for nobody can tell then; AGENT_RUNNING if an agent serves it after all.
    """
    _require_root()
    namespaces.require_machine_mounts()
    sandboxes = slots = reserved = generation = 0
    with _sole_agent(settings):
        try:
            dataplane = DataPlane.open(settings.run_directory, writable=False)
        except GeneveError as error:
            if error.code is Code.LAYOUT_MISMATCH:
                # Another version's maps: who is attached is not to be read from here.
                error.hint = "use --force to remove the node and whatever is attached to it"
            if error.code is not Code.NODE_SETUP and not force:
                raise
        else:
            with contextlib.closing(dataplane):
                sandboxes = sum(1 for _ in dataplane.attachments())
                states = [slot.state for slot in dataplane.slots()]
                slots, reserved = len(states), states.count(SlotState.RESERVED)
                generation = dataplane.generation
        if not force:
            refuse_in_use(sandboxes, reserved)
        tear_down(settings)
        with contextlib.closing(AttachedLog(settings.state_directory / ATTACHED)) as attached:
            attached.read()
            attached.forget(generation)
    return sandboxes, slots


@contextmanager
def _sole_agent(settings: NodeSettings) -> Iterator[None]:
    """Hold the node's lock, which the kernel lets go of when this process ends."""
    directory = settings.run_directory
    path = directory / "agent.lock"
    # The socket's mode says who may speak; a service's umask would shut its group out up here.
    before = os.umask(0o022)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise GeneveError(
            Code.NODE_SETUP, f"cannot make {directory}: {error.strerror}", hint="see node.run_root"
        ) from None
    finally:
        os.umask(before)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise GeneveError(
                Code.AGENT_RUNNING,
                f"process {owner or '?'} serves node {settings.name} already",
                hint="stop it first, or give this node another name",
            ) from None
        # Opened before a `node down` removed it, the file is no lock any more: the next
        # one who comes makes another.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise GeneveError(
                Code.AGENT_RUNNING,
                f"node {settings.name} was being taken down just now",
                hint="try again",
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        except BaseException:
            if os.listdir(directory) == [path.name]:  # of a node there is nothing
                path.unlink()
                directory.rmdir()
            raise
    finally:
        os.close(descriptor)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise GeneveError(Code.NOT_PERMITTED, "the agent needs root", hint="use sudo")


def _raise_descriptor_limit() -> None:
    """One descriptor a connection, and some for maps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + 512
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
