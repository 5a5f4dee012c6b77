# SPDX-License-Identifier: Apache-2.0
"""One node in a storm: callers, CPUs, the kernel's RTNL, the agent's one thread, a pool.

An attach of the classic way holds RTNL for a part of its time, and a CPU for all of
it. One of ours takes its turn in the agent instead and takes a slot out of the
pool, which a refill works to fill again under RTNL. Where no slot is ready a
request waits in a bounded queue until its deadline, or is refused with the time
after which to ask again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from bench.harness import percentile

SLICE = 0.003  # seconds that a process keeps a CPU while others wait for it
Draw = Callable[[], float]  # seconds, another each time
Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Way:
    """How one attach goes. A way with a pool gives an attach what was made before."""

    name: str
    caller: Draw  # on a CPU, nobody else's: the process that asks
    served: Draw  # on a CPU, one at a time: under RTNL, or in the agent
    in_agent: bool = False
    pool: int = 0  # ready at the start, and what is refilled to; 0: nothing is made before
    refill: Draw | None = None  # one slot, on a CPU and under RTNL


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens to those for whom no slot is ready."""

    waiting_max: int = 1024
    deadline: float = 30.0  # seconds from the request on
    retries: int = 0  # of a caller that was refused
    retry_after_max: float = 60.0  # seconds


@dataclass(slots=True)
class Outcome:
    """What became of a storm; times in seconds from each caller's first request."""

    done: list[float] = field(default_factory=list)
    expired: int = 0
    refused: int = 0  # in the end
    asked_again: int = 0
    ended: float = 0.0  # when the last one was done
    longest_queue: int = 0

    def percentile(self, share: float) -> float:
        """Of those that were done; 0 if none was."""
        return percentile(sorted(self.done), share) if self.done else 0.0


class Servers:
    """So many alike, and who waits for one: in their order, whoever holds a lock first.

    As a kernel's scheduler does it, nobody keeps a CPU for longer than a slice while
    others wait; but what holds a lock has slept for it, and goes first.
    """

    def __init__(self, env: simpy.Environment, count: int) -> None:
        self._env = env
        self._free = count
        self._urgent: deque[simpy.Event] = deque()
        self._waiting: deque[simpy.Event] = deque()

    def take(self, *, urgent: bool = False) -> Steps:
        """Wait for one."""
        if self._free:
            self._free -= 1
            return
        turn = self._env.event()
        (self._urgent if urgent else self._waiting).append(turn)
        yield turn

    def give_back(self) -> None:
        """To the next one, if somebody waits."""
        waiting = self._urgent or self._waiting
        if waiting:
            waiting.popleft().succeed()
        else:
            self._free += 1

    def work(self, seconds: float, *, urgent: bool = False) -> Steps:
        """Take one and keep it that long, in slices unless it is urgent."""
        while seconds > 0:
            part = seconds if urgent else min(seconds, SLICE)
            yield from self.take(urgent=urgent)
            yield self._env.timeout(part)
            self.give_back()
            seconds -= part


class Node:
    """A node while a storm passes."""

    def __init__(self, way: Way, policy: Policy, cpus: int, seed: int) -> None:
        self.outcome = Outcome()
        self._way, self._policy = way, policy
        self._random = random.Random(seed)
        self._env = simpy.Environment()
        self._cpus = Servers(self._env, cpus)
        self._rtnl = Servers(self._env, 1)
        self._server = Servers(self._env, 1) if way.in_agent else self._rtnl
        self._ready = way.pool
        self._waiting: deque[tuple[simpy.Event, float]] = deque()
        self._gap = 0.0  # seconds between two slots, as the last few came
        self._missing: simpy.Event | None = None  # what the refill sleeps on

    def run(self, callers: int, within: float) -> Outcome:
        """So many requests, spread at random over `within` seconds; 0 is all at once."""
        if self._way.refill is not None:
            self._env.process(self._refilling(self._way.refill))
        arrivals = sorted(self._random.uniform(0, within) for _ in range(callers))
        everyone = [self._env.process(self._calling(at)) for at in arrivals]
        self._env.run(self._env.all_of(everyone))
        return self.outcome

    def _calling(self, arrival: float) -> Steps:
        env, way, policy = self._env, self._way, self._policy
        yield env.timeout(arrival)
        yield from self._cpus.work(way.caller())
        for attempt in range(policy.retries + 1):
            if way.pool and not self._ready:
                if len(self._waiting) >= policy.waiting_max:
                    if attempt == policy.retries:
                        break
                    self.outcome.asked_again += 1
                    after = min(self._gap * len(self._waiting) or 1.0, policy.retry_after_max)
                    # With jitter, or they all come back together.
                    yield env.timeout(after * self._random.uniform(1.0, 1.5))
                    continue
                turn = env.event()
                self._waiting.append((turn, env.now + policy.deadline))
                self.outcome.longest_queue = max(self.outcome.longest_queue, len(self._waiting))
                if not (yield turn):
                    self.outcome.expired += 1
                    return
            elif way.pool:
                self._ready -= 1
            self._wake_refill()
            yield from self._server.take()
            yield from self._cpus.work(way.served(), urgent=True)
            self._server.give_back()
            self.outcome.done.append(env.now - arrival)
            self.outcome.ended = max(self.outcome.ended, env.now)
            return
        self.outcome.refused += 1

    def _refilling(self, draw: Draw) -> Steps:
        env = self._env
        while True:
            if self._ready >= self._way.pool and not self._waiting:
                self._missing = env.event()
                yield self._missing
                continue
            began = env.now
            yield from self._rtnl.take()
            yield from self._cpus.work(draw(), urgent=True)
            self._rtnl.give_back()
            gap = env.now - began
            self._gap = gap if not self._gap else self._gap + 0.2 * (gap - self._gap)
            self._ready += 1
            while self._ready and self._waiting:
                turn, deadline = self._waiting.popleft()
                # Who is too late gets nothing: the slot is the next one's.
                in_time = deadline >= env.now
                self._ready -= in_time
                turn.succeed(in_time)

    def _wake_refill(self) -> None:
        if self._missing is not None:
            missing, self._missing = self._missing, None
            missing.succeed()
