# SPDX-License-Identifier: Apache-2.0
"""The agent's life: what it starts in which order, and what it leaves behind when it ends.

SIGTERM and SIGINT end the agent alone: what is attached goes on forwarding, and
the next agent adopts it. Only `node down` removes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from geneve_ebpf.agent import activity, progress
from geneve_ebpf.agent.admission import Admission
from geneve_ebpf.agent.answers import Json
from geneve_ebpf.agent.api import Api, NodeFacts, Shared
from geneve_ebpf.agent.children import Child
from geneve_ebpf.agent.config import AgentConfig
from geneve_ebpf.agent.desired import Desired
from geneve_ebpf.agent.events import Events, Said
from geneve_ebpf.agent.intake import closed
from geneve_ebpf.agent.latency import Recorder
from geneve_ebpf.agent.later import Later
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.notify import notify, tell_watchdog, watchdog_seconds
from geneve_ebpf.agent.operations import Operations
from geneve_ebpf.agent.pace import behind_answers
from geneve_ebpf.agent.places import Place
from geneve_ebpf.agent.queue import Queue
from geneve_ebpf.agent.recurring import every
from geneve_ebpf.agent.server import Server
from geneve_ebpf.agent.service import Node
from geneve_ebpf.agent.slot_pool import SlotPool
from geneve_ebpf.control.attached_log import AttachedLog, Lost
from geneve_ebpf.control.rest_log import RestLog
from geneve_ebpf.control.state import DesiredState
from geneve_ebpf.control.store import Store
from geneve_ebpf.dataplane import DataPlane, NotDone, facts, look_after, tear_down
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host.addresses import is_own

SOCKET_MODE = 0o660
BACKLOG = 512
LOOK_AGAIN = 1.0  # seconds until a look at the node that was not to be had is tried again
SWEEP_EVERY = 5.0  # seconds between looks for half-sent requests
# Allocations that lead to a young collection, young ones to a middle one, middle ones to a
# full one. A full one walks what is not frozen; there is nothing in it that needs haste.
COLLECT = (20_000, 20, 1000)
# Seconds that records of changes may wait, so that many go out in one write, after the answers.
LOG_AFTER = 0.005


class Agent:
    """One run of the agent, from an open data plane on."""

    def __init__(
        self,
        config: AgentConfig,
        dataplane: DataPlane,
        cpus: set[int],
        log: Log,
        *,
        unseen: bool,
    ) -> None:
        """cpus: where its children may run if they are not placed. unseen: the node was
        adopted by its maps alone, and whether all hangs where it should is yet to be seen.
        """
        self.failure: GeneveError | None = None  # why the node that was adopted is none
        self._unseen = unseen
        self._unlooked = ""  # why that has not been done yet
        self._looking: asyncio.Task[None] | None = None
        self._config = config
        self._settings = config.node
        self._dataplane = dataplane
        self._cpus = cpus
        self._log = log
        self._stop = asyncio.Event()
        self._children: list[Child] = []
        self._going_down = False

    async def live(
        self,
        store: Store,
        state: DesiredState,
        recorder: Recorder,
        rests: RestLog,
        attached: AttachedLog,
    ) -> None:
        """Adopt, start the children, serve until told to stop."""
        loop = asyncio.get_running_loop()
        settings, log = self._settings, self._log
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        soon = behind_answers(LOG_AFTER)
        log.deferred_by(soon)
        desired = Desired(self._dataplane, store, state, settings.address_rest, time.monotonic, log)
        pool = SlotPool(
            self._dataplane,
            settings.run_directory / "netns",
            settings.targets,
            log,
            self._config.filling,
        )
        self._pool = pool
        self._events = Events(log, time.time, first=time.time_ns() // 1000)
        self._queue = Queue(Admission(loop.time))
        self._later = Later(
            # Nobody who asks for an earlier agent's may get another's, whatever the clock says.
            Operations(
                loop.time, time.time, random.random, prefix=f"op-{secrets.token_hex(4)}"
            ),
            self._queue,
            self._events,
            log,
        )
        self._node = Node(
            settings,
            self._dataplane,
            desired,
            pool,
            rests,
            recorder,
            log,
            self._queue.admission,
            attached,
            soon,
        )
        self._node.adopt()
        for lost in self._node.lost:  # the kernel has started anew
            self._tell_lost(lost)
        pool.on_lost = self._lost
        pool.on_faulty = self._faulty
        pool.uplinks.on_down = lambda down: self._events.add("uplinks-down", Said({"down": down}))
        if self._node.intake.refuses is not None:
            self._queue.refuse(self._node.intake.refuses)
        pool.on_ready = partial(self._queue.serve, pool.ready_of)
        desired.program()
        if not self._unseen:
            self._start_children(pool)
        found = facts(settings.run_directory)
        if self._unseen:  # these facts are of the start before
            found = replace(found, boot="adopted", remark="")
        if found.remark:
            log.warning("programs", remark=found.remark)
        shared = Shared(
            self._node,
            NodeFacts(
                found.boot,
                self._dataplane.layout,
                self._dataplane.program,
                self._dataplane.mtu,
                time.monotonic(),
            ),
            log,
            self._events,
            self._later,
            self._queue,
            self._problems,
            self._take_down,
        )
        pool.uplinks.on_mtu = shared.set_mtu
        path = settings.run_directory / "api.sock"
        listening = _listen(path)
        self._server = Server(Api(shared), log, os.stat(path).st_gid)
        listener = await loop.create_unix_server(
            self._server.connection, sock=listening, backlog=BACKLOG
        )
        gc.freeze()
        gc.set_threshold(*COLLECT)
        gc.enable()
        notify("READY=1")
        log.info(
            "serving",
            socket=path,
            boot=found.boot,
            sandboxes=self._node.count(),
            revision=desired.state.revision,
        )
        if self._unseen:
            self._looking = asyncio.ensure_future(self._look_after(pool))
        beats = [asyncio.ensure_future(each) for each in self._beats()]
        if os.isatty(2):
            beats.append(asyncio.ensure_future(progress.show(pool, log)))
        await self._stop.wait()
        notify("STOPPING=1")
        for each in beats:
            each.cancel()
        if not self._going_down:  # else it is gone, and another agent's may be there by now
            path.unlink(missing_ok=True)
        listener.close()
        self._events.close()
        if not self._going_down:
            self._queue.refuse(_stopping)
        await self._later.stop()
        await self._server.stop()
        await self._looked()
        pool.stop()
        for child in self._children:
            await child.stop()
        log.flush()

    async def _look_after(self, pool: SlotPool) -> None:
        """See that all hangs where it should; then start those who do netlink."""
        while self._unseen and not self._stop.is_set() and not self._going_down:
            try:
                await asyncio.to_thread(look_after, self._settings)
            except NotDone as error:  # which is no reason to attach nobody
                self._unlooked = f": {error.message}"
                self._log.warning("not-looked-at", error=error.message)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), LOOK_AGAIN)
            except GeneveError as error:
                self.failure = error
                self._stop.set()
            else:
                self._unseen = False
        if not self._stop.is_set() and not self._going_down:
            self._start_children(pool)

    async def _looked(self) -> None:
        if self._looking is not None:
            await self._looking

    def _start_children(self, pool: SlotPool) -> None:
        settings, placement = self._settings, self._config.placement
        text = settings.as_json()
        maker = Child(
            "slot process",
            ["-m", "geneve_ebpf.agent.slot_process", "--settings-json", text],
            self._log,
            cpus=placement.cpus("slot", self._cpus),
            on_start=pool.connect,
            on_death=pool.disconnect,
        )
        self._children.append(maker)
        if settings.metrics_listen:
            more = ["--per-sandbox"] if self._config.metrics_per_sandbox else []
            self._children.append(
                Child(
                    "exporter",
                    ["-m", "geneve_ebpf.exporter", "--settings-json", text, *more],
                    self._log,
                    cpus=placement.cpus("exporter", self._cpus),
                )
            )
        for child in self._children:
            child.start()

    def _tell_lost(self, one: Lost) -> None:
        """Who was attached and is not, and nobody has detached it: an event."""
        what: Json = {
            "sandbox": one.sandbox,
            "vpc": self._node.vpc_name(one.vni),
            "vni": one.vni,
            "address": list(one.addresses),
            "slot": f"slot-{one.slot}",
            "generation": one.generation,
        }
        self._events.add("sandbox-lost", Said(what))

    def _lost(self, place: Place) -> None:
        """The interface of a slot that somebody is attached to is gone."""
        lost = self._node.lose(place)
        if lost is not None:
            self._tell_lost(lost)

    def _faulty(self, place: Place) -> None:
        """Others changed the interface of a slot that is somebody's, or undid it: an event."""
        attachment = self._node.attached_to(place)
        what: Json = {} if attachment is None else {"sandbox": attachment.sandbox}
        what |= {"slot": f"slot-{place.index}", "fault": place.fault}
        self._events.add("slot-faulty" if place.fault else "slot-mended", Said(what))

    def _problems(self) -> list[str]:
        """Why the node is not whole."""
        problems = [child.problem for child in self._children if child.problem]
        if self._unseen:
            about = f"attaches work, and the node's hooks are being looked at{self._unlooked}"
            problems.append(about)
        if self._going_down:
            problems.append("the node is being taken down")
        if not is_own(self._settings.vtep, self._settings.uplinks):
            problems.append(f"the VTEP {self._settings.vtep} is no address of this node")
        return problems + list(self._node.degraded())

    async def _take_down(self, force: bool) -> Json:
        """POST /v1/node:down: remove what was made, then have the agent end."""
        if self._going_down:
            raise GeneveError(Code.BUSY, "the node is being taken down already", hint="wait")
        sandboxes = self._node.count()
        if not force:
            refuse_in_use(sandboxes, self._pool.counts["reserved"])
        # From here on nobody attaches: the check above must stay true.
        self._going_down = True
        self._node.intake.close()
        self._queue.refuse(closed)
        await self._looked()
        slots = len(self._pool.places())
        self._pool.stop()
        for child in self._children:
            await child.stop()
        try:
            await asyncio.to_thread(tear_down, self._settings)
        except GeneveError:
            # Half of it may be gone. The agent ends all the same, and the next
            # `node down` or start goes on from there.
            self._going_down = False
            self._stop.set()
            raise
        self._node.forget()
        self._log.info("node-down", sandboxes=sandboxes, slots=slots, force=force)
        self._stop.set()
        return {"node": self._settings.name, "sandboxes": sandboxes, "slots": slots}

    def _beats(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What is due again and again."""
        node, log = self._node, self._log

        def look_for_activity() -> Awaitable[None]:
            return node.activity.sweep(node.attachments(), node.__contains__)

        yield every(activity.EVERY, look_for_activity, log)
        yield every(SWEEP_EVERY, self._server.sweep, log)
        watchdog = watchdog_seconds()
        if watchdog is not None:
            yield every(min(SWEEP_EVERY, watchdog), tell_watchdog, log)


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, in place of what an agent that died has left there."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise GeneveError(
            Code.NODE_SETUP, f"cannot listen on {path}: {error}", hint="see node.run_root"
        ) from None
    finally:
        os.umask(before)
    listening.listen(BACKLOG)
    listening.setblocking(False)
    return listening


def refuse_in_use(sandboxes: int, reserved: int) -> None:
    """Raise NODE_IN_USE if sandboxes are attached or slots reserved: the node is somebody's."""
    if sandboxes or reserved:
        who = [f"{sandboxes} sandbox{'es' * (sandboxes > 1)} attached"] if sandboxes else []
        who += [f"{reserved} slot{'s' * (reserved > 1)} reserved"] if reserved else []
        raise GeneveError(
            Code.NODE_IN_USE,
            f"the node has {' and '.join(who)}",
            hint="geneve-ebpf slot list names them: detach and `slot release` them, or use --force",
        )


def _stopping() -> GeneveError:
    return GeneveError(
        Code.AGENT_UNREACHABLE, "the agent is being stopped", hint="ask again when it is back"
    )
