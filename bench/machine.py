# SPDX-License-Identifier: Apache-2.0
"""The machine a number was taken on: a figure without this record means little."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CPU0 = Path("/sys/devices/system/cpu/cpu0")


def record() -> dict[str, object]:
    """What is known before a run. `load_after` is added when it ends."""
    cpu = cpu_fields()
    return {
        "cpu": cpu.get("model name") or cpu.get("CPU part") or platform.machine(),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in cpu.get("flags", "").split(),
        "governor": first_line(CPU0 / "cpufreq/scaling_governor") or "none visible",
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "distribution": distribution(),
        "python": platform.python_version(),
        "commit": commit(),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": load(),
    }


def load() -> list[float]:
    """Runnable processes, averaged over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def cpu_fields() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if not line.strip():
            break
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def distribution() -> str:
    """The system's name, as it calls itself."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"


def commit() -> str:
    """The revision measured; "+" when files differ from it; "" outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def first_line(path: Path) -> str:
    """A file's first line, "" when it cannot be read."""
    try:
        return path.read_text().partition("\n")[0]
    except OSError:
        return ""


def busy_share(seconds: float) -> float:
    """The share of all CPUs' time spent working during the next `seconds`."""
    busy, total = cpu_ticks()
    time.sleep(seconds)
    busy_after, total_after = cpu_ticks()
    return (busy_after - busy) / max(1, total_after - total)


def cpu_ticks() -> tuple[int, int]:
    """(busy, all) clock ticks of all CPUs since boot."""
    ticks = [int(field) for field in first_line(Path("/proc/stat")).split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def settle(at_most: float = 1.5) -> bool:
    """Wait until the machine is nearly idle, so that one contestant's undoing
    (namespaces vanish in the background) is not charged to the next.

    False when it stayed busy for `at_most` seconds.
    """
    end = time.monotonic() + at_most
    while busy_share(0.06) > 0.12:
        if time.monotonic() > end:
            return False
    return True
