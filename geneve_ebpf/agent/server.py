# SPDX-License-Identifier: Apache-2.0
"""What the connections to the agent's socket share; and staying awake between requests."""

from __future__ import annotations

import asyncio
import os
from time import perf_counter_ns

from geneve_ebpf.agent.exchange import Handler
from geneve_ebpf.agent.http import Connection
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.trace import Traces
from geneve_ebpf.errors import Code, GeneveError

CONNECTIONS_MAX = 1024


class Server:
    """The listening side: what all connections share."""

    def __init__(self, handler: Handler, log: Log, group: int) -> None:
        """group: the gid that, beside root, may use the socket."""
        self.handler = handler
        self.log = log
        self.group = group
        self.connections: set[Connection] = set()
        self.large_bytes = 0  # of the large bodies that connections hold
        self.traces = Traces()
        self.stopping = False
        self._awake = False
        self._awake_until = 0
        self._call_soon = asyncio.get_running_loop().call_soon

    def connection(self) -> Connection:
        """A protocol for a new connection: pass this to `create_unix_server`."""
        return Connection(self)

    def add(self, connection: Connection) -> GeneveError | None:
        """One was made; why it cannot stay, if so."""
        if len(self.connections) >= CONNECTIONS_MAX:
            return GeneveError(
                Code.BUSY,
                f"{CONNECTIONS_MAX} connections are open",
                hint="keep one connection and use it again",
            )
        self.connections.add(connection)
        return None

    def stay_awake(self, until: int) -> None:
        """Look for requests until then (perf_counter_ns) rather than sleep: see `Attention`."""
        self._awake_until = max(until, self._awake_until)
        if until and not self._awake:
            self._awake = True
            self._call_soon(self._look)

    def _look(self) -> None:
        if perf_counter_ns() < self._awake_until:
            os.sched_yield()
            self._call_soon(self._look)
        else:
            self._awake = False

    def sweep(self) -> None:
        """Refuse what has been half-sent for too long; call it every few seconds."""
        now = perf_counter_ns()
        for connection in list(self.connections):
            connection.refuse_if_slow(now)

    async def stop(self, seconds: float = 5.0) -> None:
        """Answer what has been asked, then close every connection."""
        self.stopping = True
        deadline = asyncio.get_running_loop().time() + seconds
        while any(connection.busy for connection in self.connections):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.close()
        await asyncio.sleep(0)
