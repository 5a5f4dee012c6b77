# SPDX-License-Identifier: Apache-2.0
"""Service times out of the record of `script/bench attach`, and the ways they make up."""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import SCHEMA
from bench.sim.model import Draw, Way
from bench.testbed import BenchError

SHARES = (0.0, 0.5, 0.9, 0.99, 1.0)
NAMES = ("min", "p50", "p90", "p99", "max")
Points = tuple[float, ...]
NOTHING: Points = (0.0,) * len(SHARES)


@dataclass(frozen=True, slots=True)
class Record:
    """A bench run: its machine and its rows."""

    path: Path
    machine: dict[str, Any]
    rows: dict[str, dict[str, Any]]

    @property
    def cpus(self) -> int:
        """How many the machine had."""
        return int(self.machine["cores"])

    def points(self, name: str) -> Points:
        """A row's quantiles in seconds, at SHARES. Raises BenchError if it is not there."""
        row = self.rows.get(name)
        if row is None or row["unit"] != "us":
            raise BenchError(f"{self.path} has no row {name} in us")
        return tuple(float(row[key]) / 1e6 for key in NAMES)


def read(path: Path, bench: str) -> Record:
    """A record of that bench. Raises BenchError."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or (record.get("schema"), record.get("bench")) != (
        SCHEMA, bench,
    ):  # fmt: skip
        raise BenchError(f"{path} is no record of: script/bench {bench} --json {path}")
    return Record(path, record["machine"], {row["name"]: row for row in record["results"]})


def at(points: Points, share: float) -> float:
    """The quantile, straight lines between those that are known."""
    right = min(bisect_right(SHARES, share), len(SHARES) - 1)
    low, high = SHARES[right - 1], SHARES[right]
    return points[right - 1] + (points[right] - points[right - 1]) * (share - low) / (high - low)


def drawing(seed: int, more: Points, less: Points = NOTHING) -> Draw:
    """Draws what `more` takes beyond `less`, each at the same quantile."""
    source = random.Random(seed)

    def draw() -> float:
        share = source.random()
        return max(0.0, at(more, share) - at(less, share))

    return draw


def ways(record: Record, pool: int, seed: int, caller: Points | None = None) -> list[Way]:
    """
    The script, pooled classic and ours, as the record's rows say.

    caller: what a caller costs before it does anything; without, the floor of a
    socket's round trip. What pyroute2 or the shell add to the kernel's own time is
    the caller's, on any CPU; the kernel's own time is taken to be all under RTNL.
    """
    rows: Mapping[str, Points] = {
        name: record.points(name)
        for name in (
            "attach.agent_c_one_cpu", "socket.floor_one_cpu", "socket.floor", "make.slot",
            "classic.script", "classic.netlink_raw", "classic.pooled", "classic.pooled_raw",
        )
    }  # fmt: skip
    floor = caller or rows["socket.floor"]
    whole, tunnel = rows["classic.netlink_raw"], rows["classic.pooled_raw"]

    def beside(name: str, kernel: Points) -> Points:
        return tuple(
            base + max(0.0, one - other)
            for base, one, other in zip(floor, rows[name], kernel, strict=True)
        )

    return [
        Way(
            "script",
            drawing(seed, beside("classic.script", whole)),
            drawing(seed + 1, whole),
        ),
        Way(
            "pooled",
            drawing(seed + 2, beside("classic.pooled", tunnel)),
            drawing(seed + 3, tunnel),
            pool=pool,
            refill=drawing(seed + 4, whole, tunnel),
        ),
        Way(
            "ours",
            drawing(seed + 5, floor),
            drawing(seed + 6, rows["attach.agent_c_one_cpu"], rows["socket.floor_one_cpu"]),
            in_agent=True,
            pool=pool,
            refill=drawing(seed + 7, rows["make.slot"]),
        ),
    ]
