# SPDX-License-Identifier: Apache-2.0
"""Where the CPUs' time goes while two sandboxes talk: ours, the classic way, and a bare veth.

`perf` samples stacks all over the machine; a sample of the two programs counts for the part
that is named by the innermost of the functions it was in. Each program's softirqs are its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import harness, machine, wire
from bench.beds import Bed
from bench.compiled import compiled
from bench.ours import run_root
from bench.testbed import BenchError, end_with_parent, interruptible, need, run, sweep, two_cpus

CONTESTANTS = ("ours", "vxlan_bridge", "bare_veth")
WORKS = ("tcp1", "udp64")
RATE = 9_999  # samples a second and CPU; no divisor of what else is periodic
WARM_UP, SECONDS = 0.6, 3.0  # of the traffic; perf looks at what lies within
LOOKS = 2.4
REST = "the rest"
# The first that knows a function of the stack, looked at from its inner end.
PARTS = {
    name: re.compile(pattern)
    for name, pattern in (
        ("sandbox_tx", r"^bpf_prog_\w+_sandbox_tx$"),
        ("uplink_rx", r"^bpf_prog_\w+_uplink_rx$"),
        ("finding programs, redirects", r"^(skb_do_redirect|\w*tcx_run|tc_run|\w*tcf_classify)"),
        ("tunnel device", r"^(vxlan|geneve)_|^iptunnel_xmit|^udp_tunnel_xmit"),
        ("bridge", r"^br_"),
        ("software segmentation", r"skb_gso_segment|skb_segment|_gso_segment$"),
        ("GRO", r"gro_receive|gro_complete|gro_flush|gro_cell|gro_normal"),
        ("waking the receiver", r"^(sock_def_readable|try_to_wake_up|tcp_data_ready|schedule)"),
        ("freeing packets", r"^(skb_release_data|\w*kfree_skb|\w*consume_skb|skb_defer_free)"),
        ("copying in", r"^(tcp_sendmsg|_copy_from_iter|ip_make_skb)"),
        ("copying out", r"^(tcp_recvmsg|udp_recvmsg|_copy_to_iter)"),
        ("IP, TCP, UDP: receiving", r"^(tcp_v4_rcv|ip_rcv|ip_list_rcv|ip_sublist_rcv)"),
        ("veths and queues", r"^(veth_|process_backlog|net_rx_action|__dev_queue_xmit)"),
        ("IP, TCP, UDP: sending", r"^(tcp_|udp_sendmsg|udp_send_skb|ip_send_skb|ip_output)"),
    )
}


def part_of(stack: Iterable[str]) -> str:
    """The part that a stack belongs to, innermost function first."""
    for function in stack:
        for name, pattern in PARTS.items():
            if pattern.search(function):
                return name
    return REST


def stacks(script: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """(command, functions) of each sample that `perf script -F comm,ip,sym` prints."""
    command, functions = "", list[str]()
    for line in script:
        if not line.strip():
            if functions:
                yield command, functions
            command, functions = "", []
        elif not command:
            command = line.strip()
        else:
            functions.append(line.split(maxsplit=1)[-1].strip())
    if functions:
        yield command, functions


def seconds_by_part(script: Iterable[str], program: str) -> dict[str, float]:
    """CPU seconds that the program's samples stand for."""
    found = Counter[str]()
    for command, functions in stacks(script):
        if command == program:
            found[part_of(functions)] += 1
    return {name: found[name] / RATE for name in (*PARTS, REST)}


def profiled(
    program: Path, work: wire.Work, bed: Bed, cpus: tuple[int, int], data: Path
) -> dict[str, float]:
    """One go: ns of CPU by part, for a datagram or for 1,000 bits. Raises BenchError."""
    bed.set_wire(work.wire)
    words = ("-q", "-a", "-g", "-F", str(RATE), "-D", str(int(WARM_UP * 1000)), "-o", str(data))
    sampler = subprocess.Popen(
        ["perf", "record", *words, "--", "sleep", str(WARM_UP + LOOKS)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent,
    )
    found = wire.ends(program, work, bed, cpus, (WARM_UP, SECONDS))
    _, errors = sampler.communicate(timeout=60)
    if sampler.returncode:
        raise BenchError(f"perf: {errors.strip() or sampler.returncode}")
    script = run("perf", "script", "-i", str(data), "-F", "comm,ip,sym").splitlines()
    spent = seconds_by_part(script, program.name)
    if not spent["sandbox_tx"] + spent["veths and queues"]:
        raise BenchError("perf saw nothing of the traffic in the kernel")
    done = found["count"] / found["seconds"] * LOOKS * (8e-3 if work.tool == "tcp" else 1)
    return {name: seconds / done * 1e9 for name, seconds in spent.items()}


def main(json_file: str | None, rounds: int) -> None:
    """Run and report. Raises BenchError or GeneveError."""
    need({"ip": "iproute2", "ethtool": "ethtool", "cc": "gcc", "perf": "linux-perf"})
    sweep()
    about = machine.record()
    rows: dict[str, harness.Row] = {}
    restless = 0
    with interruptible(), ExitStack() as stack:
        root = stack.enter_context(run_root())
        program = compiled("traffic.c", root)
        assert program is not None  # need() found the compiler
        made, _ = wire.make_beds(stack, set(CONTESTANTS))
        for number in range(rounds):
            for work in (one for one in wire.WORKS if one.name in WORKS):
                for name in CONTESTANTS if number % 2 else reversed(CONTESTANTS):
                    harness.say(f"round {number + 1} of {rounds}: {work.name}.{name}")
                    restless += not machine.settle()
                    taken = profiled(program, work, made[name], two_cpus(), root / "perf.data")
                    for part, spent in (*taken.items(), ("all", sum(taken.values()))):
                        row = f"{work.name}.{name}.{part}"
                        unit = "us/Mbit" if work.tool == "tcp" else "ns/pkt"
                        rows.setdefault(row, harness.Row(row, unit)).rounds.append([spent])
    harness.report(
        "profile",
        about,
        rows,
        [(f"{work}.ours.all", f"{work}.{name}.all") for work in WORKS for name in CONTESTANTS[1:]],
        restless=restless,
        notes=[
            "CPU of both ends, by the part that the innermost function of a sample names; "
            "perf itself costs some.",
        ],
        json_file=json_file,
    )
    for done in WORKS:
        print(table(done, rows), file=sys.stderr if json_file == "-" else sys.stdout)


def table(work: str, rows: dict[str, harness.Row]) -> str:
    """A work's medians, a column for each contestant, as Markdown."""
    unit = rows[f"{work}.{CONTESTANTS[0]}.all"].unit
    lines = ["", f"| {work}, {unit} | " + " | ".join(CONTESTANTS) + " |", "|---" * 4 + "|"]
    for part in (*PARTS, REST, "all"):
        cells = [median(rows[f"{work}.{name}.{part}"].samples) for name in CONTESTANTS]
        lines.append(f"| {part} | " + " | ".join(map(harness.number, cells)) + " |")
    return "\n".join(lines)
