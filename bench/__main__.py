# SPDX-License-Identifier: Apache-2.0
"""`python -m bench BENCH`: needs root, and interferes with nothing that runs."""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.testbed import BenchError
from geneve_ebpf.errors import Exit, GeneveError


@dataclass(frozen=True, slots=True)
class Option:
    """An option that one bench alone has."""

    flag: str
    default: int | str
    text: str


@dataclass(frozen=True, slots=True)
class Bench:
    """
    One bench: a module bench.NAME whose `main` takes a JSON file, rounds and its option.

    in_all: rounds in `all`, seconds before the first and seconds of each, on two quiet cores.
    """

    name: str
    rounds: int
    in_all: tuple[int, float, float]
    text: str
    option: Option | None = None


BENCHES = (
    Bench(
        "attach",
        8,
        (5, 35, 18),
        "ours by library and through the agent; script, netlink, pooled classic",
    ),
    Bench(
        "storm",
        3,
        (1, 90, 150),
        "1 to 200 attaches at the same instant while others are detached",
        Option("--most", 200, "attaches at once in the largest storm"),
    ),
    Bench(
        "first_byte",
        8,
        (5, 20, 9),
        "from the request to attach to the first byte from another node",
    ),
    Bench(
        "wire",
        5,
        (5, 95, 66),
        "TCP, datagrams, questions and connections: ours beside others, taps too",
        Option("--only", "", "only works whose name begins so, such as tcp1"),
    ),
    Bench(
        "cost",
        3,
        (2, 40, 15),
        "ns a packet by the kernel's clock, as a node fills with sandboxes and routes",
        Option("--most", 1_000_000, "routes"),
    ),
    Bench(
        "slots",
        3,
        (1, 15, 125),
        "thousands of slots: made, attached, restarted over, destroyed",
        Option("--slots", 4000, "slots of the full node"),
    ),
)


SIM = "storms of 10 to 100,000 sandboxes, simulated with the times that a bench measured; no root"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description="Measure attaching a sandbox and what the wire carries, beside other ways. "
        "Runs as root in network namespaces of its own and touches no other interface.",
    )
    commands = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    for bench in BENCHES:
        one = commands.add_parser(bench.name, help=bench.text, description=bench.text)
        one.add_argument("--json", metavar="FILE", help="write the record here; - is stdout")
        rounds(one, bench.rounds)
        if bench.option is not None:
            one.add_argument(
                bench.option.flag,
                dest="option",
                type=type(bench.option.default),
                default=bench.option.default,
                metavar="N" if isinstance(bench.option.default, int) else "NAME",
                help=f"{bench.option.text} (default: {bench.option.default or 'all'})",
            )
    simulated(commands.add_parser("sim", help=SIM, description=SIM))
    text = "attach and detach for minutes, with refill; every count is what it was afterwards"
    soak = commands.add_parser("soak", help=text, description=text)
    soak.add_argument("--json", metavar="FILE", help="write the record here; - is stdout")
    soak.add_argument(
        "--minutes", type=float, default=10, metavar="N", help="how long (default: %(default)s)"
    )
    soak.add_argument(
        "--cycles",
        type=int,
        default=0,
        metavar="N",
        help="so many sandboxes instead, 250 a second; 100000, say",
    )
    text = (
        "sandboxes come and go for minutes: rate, CPU and the kernel's lock a life, ours and pooled"
    )
    sustained = commands.add_parser("sustained", help=text, description=text)
    sustained.add_argument("--json", metavar="FILE", help="write the record here; - is stdout")
    sustained.add_argument(
        "--minutes", type=float, default=10, metavar="N", help="of each (default: %(default)s)"
    )
    text = "where the CPU's time goes, ours beside VXLAN on a bridge and a bare veth; needs perf"
    profile = commands.add_parser("profile", help=text, description=text)
    profile.add_argument("--json", metavar="FILE", help="write the record here; - is stdout")
    rounds(profile, 3)
    text = "every bench but the long runs in under 20 minutes, and a page with their plots"
    every = commands.add_parser("all", help=text, description=text)
    every.add_argument("--report", type=Path, required=True, metavar="DIR", help="write it here")
    rounds(every, None)
    text = "the page anew, from the records that are there"
    page = commands.add_parser("report", help=text, description=text)
    page.add_argument("directory", type=Path, metavar="DIR")
    text = "two records of one bench, or two directories of `all`, row by row"
    both = commands.add_parser("compare", help=text, description=text)
    both.add_argument("before", type=Path, metavar="A")
    both.add_argument("after", type=Path, metavar="B")
    return parser.parse_args()


def simulated(parser: argparse.ArgumentParser) -> None:
    """The options of the simulation."""
    parser.add_argument(
        "--measured",
        type=Path,
        required=True,
        metavar="FILE",
        help="a record of `script/bench attach --json FILE`: the service times",
    )
    parser.add_argument(
        "--storm",
        type=Path,
        metavar="FILE",
        help="a record of `script/bench storm --json FILE`, to be checked against",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a page with plots here")
    parser.add_argument(
        "--most",
        dest="option",
        type=int,
        default=100_000,
        metavar="N",
        help="sandboxes in the largest storm (default: %(default)s)",
    )


def rounds(parser: argparse.ArgumentParser, default: int | None) -> None:
    """The option that most have."""
    parser.add_argument(
        "--rounds",
        type=int,
        default=default,
        metavar="N",
        help="rounds after the warm-up (default: " + (f"{default})" if default else "as fits)"),
    )


def measure(asked: argparse.Namespace) -> None:
    """Run one bench. Raises BenchError or GeneveError."""
    # Imported here, so that --help and a wrong name answer at once.
    if asked.bench == "attach":
        from bench import attach

        attach.main(asked.json, asked.rounds)
    elif asked.bench == "storm":
        from bench import storm

        storm.main(asked.json, asked.rounds, asked.option)
    elif asked.bench == "first_byte":
        from bench import first_byte

        first_byte.main(asked.json, asked.rounds)
    elif asked.bench == "wire":
        from bench import wire

        wire.main(asked.json, asked.rounds, asked.option)
    elif asked.bench == "cost":
        from bench import cost

        cost.main(asked.json, asked.rounds, asked.option)
    elif asked.bench == "slots":
        from bench import slots

        slots.main(asked.json, asked.rounds, asked.option)
    elif asked.bench == "profile":
        from bench import profile

        profile.main(asked.json, asked.rounds)
    elif asked.bench == "soak":
        from bench import soak

        soak.main(asked.json, asked.minutes, asked.cycles)
    elif asked.bench == "sustained":
        from bench import sustained

        sustained.main(asked.json, asked.minutes)
    elif asked.bench == "sim":
        from bench.sim import report as simulation

        simulation.main(asked.measured, asked.storm, asked.page, asked.option)
    elif asked.bench == "compare":
        from bench import compare

        compare.main(asked.before, asked.after)
    elif asked.bench == "report":
        from bench import report

        report.main(asked.directory)
        print(asked.directory / "index.html")
    else:
        from bench import everything

        parts = [
            everything.Part(bench.name, asked.rounds or bench.in_all[0], *bench.in_all[1:])
            for bench in BENCHES
        ]
        everything.measure(asked.report, parts)


def main() -> int:
    """Run one bench; the exit status."""
    asked = arguments()
    few = [getattr(asked, name, None) for name in ("rounds", "option")]
    if any(isinstance(number, int) and number < 1 for number in few):
        print("bench: --rounds, --most and --slots must be at least 1", file=sys.stderr)
        return Exit.USAGE
    # A classic storm of 200 holds a netlink socket, of five descriptors, in each sandbox.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        measure(asked)
    except BenchError as error:
        print(f"\nbench: {error}", file=sys.stderr)
        return Exit.FAILED
    except GeneveError as error:
        print(
            f"\nbench: {error.message}" + (f" ({error.hint})" if error.hint else ""),
            file=sys.stderr,
        )
        return error.code.value.exit
    except KeyboardInterrupt:
        print("\nbench: stopped; everything it made is removed", file=sys.stderr)
        return 130
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
