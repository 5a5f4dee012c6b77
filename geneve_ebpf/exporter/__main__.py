# SPDX-License-Identifier: Apache-2.0
"""`python -m geneve_ebpf.exporter --settings-json JSON [--per-sandbox]`: started by the agent.

JSON is the node's settings, as `NodeSettings.as_json` writes them.
"""

from __future__ import annotations

import argparse
import signal
import sys

from geneve_ebpf.errors import GeneveError
from geneve_ebpf.exporter import server
from geneve_ebpf.model import NodeSettings


def main() -> int:
    """Serve metrics until told to stop, as it is when the agent ends; the exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m geneve_ebpf.exporter")
    parser.add_argument("--settings-json", required=True, metavar="JSON")
    parser.add_argument(
        "--per-sandbox", action="store_true", help="one series a sandbox and direction as well"
    )
    arguments = parser.parse_args()
    settings = NodeSettings.from_json(arguments.settings_json)
    try:
        server.serve(settings, per_sandbox=arguments.per_sandbox)
    except GeneveError as error:
        print(f"exporter: {error.message} ({error.code.slug})", file=sys.stderr, flush=True)
        return error.code.value.exit.value
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
