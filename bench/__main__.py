# SPDX-License-Identifier: Apache-2.0
"""`python -m bench BENCH`: needs root, and interferes with nothing that runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.testbed import BenchError
from geneve_ebpf.errors import Exit, GeneveError

SIM = "storms of 10 to 100,000 sandboxes, simulated with the times that a bench measured; no root"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description="Measure attaching a sandbox, or one TCP stream, beside the classic way. "
        "Runs as root in network namespaces of its own and touches no other interface.",
    )
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    for name, rounds, text in (
        ("attach", 8, "ours by library and through the agent; script, netlink and pooled classic"),
        ("storm", 3, "1 to 200 attaches at the same instant while others are detached"),
        ("first_byte", 8, "from the request to attach to the first byte from another node"),
        ("tcp", 6, "one TCP stream: ours, a VXLAN device on a bridge, a bare veth"),
    ):
        bench = benches.add_parser(name, help=text, description=text)
        bench.add_argument("--json", metavar="FILE", help="write the record here; - is stdout")
        bench.add_argument(
            "--rounds",
            type=int,
            default=rounds,
            metavar="N",
            help="rounds after the warm-up (default: %(default)s)",
        )
        if name == "storm":
            bench.add_argument(
                "--most",
                type=int,
                default=200,
                metavar="N",
                help="attaches at once in the largest storm (default: %(default)s)",
            )
    sim = benches.add_parser("sim", help=SIM, description=SIM)
    sim.add_argument(
        "--measured",
        type=Path,
        required=True,
        metavar="FILE",
        help="a record of `script/bench attach --json FILE`: the service times",
    )
    sim.add_argument(
        "--storm",
        type=Path,
        metavar="FILE",
        help="a record of `script/bench storm --json FILE`, to be checked against",
    )
    sim.add_argument("--page", type=Path, metavar="FILE", help="write a page with plots here")
    sim.add_argument(
        "--most",
        type=int,
        default=100_000,
        metavar="N",
        help="sandboxes in the largest storm (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    """Run one bench; the exit status."""
    asked = arguments()
    if getattr(asked, "rounds", 1) < 1 or getattr(asked, "most", 1) < 1:
        print("bench: --rounds and --most must be at least 1", file=sys.stderr)
        return Exit.USAGE
    try:
        # Imported here, so that --help and a wrong name answer at once.
        if asked.bench == "attach":
            from bench import attach

            attach.main(asked.json, asked.rounds)
        elif asked.bench == "sim":
            from bench.sim import report

            report.main(asked.measured, asked.storm, asked.page, asked.most)
        elif asked.bench == "storm":
            from bench import storm

            storm.main(asked.json, asked.rounds, asked.most)
        elif asked.bench == "first_byte":
            from bench import first_byte

            first_byte.main(asked.json, asked.rounds)
        else:
            from bench import tcp

            tcp.main(asked.json, asked.rounds, list(tcp.BEDS))
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
