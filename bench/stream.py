# SPDX-License-Identifier: Apache-2.0
"""One end of a TCP stream, as a program of its own: it enters a namespace, takes a CPU.

usage: stream.py receive|send NETNS CPU ADDRESS PORT WARM_UP SECONDS

ADDRESS is the receiver's, for the sender.

The receiver listens, drops the first WARM_UP seconds, counts what arrives in
the next SECONDS, prints {"bytes", "seconds"} and closes. The sender sends until
it does. Only the standard library is imported, so that it starts quickly.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time

CHUNK = 256 * 1024
CLONE_NEWNET = 0x40000000


def enter(netns: str, cpu: int) -> None:
    """Move into the namespace and onto the CPU."""
    with open(netns) as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"entering {netns}")
    os.sched_setaffinity(0, {cpu})


def receive(port: int, warm_up: float, seconds: float) -> dict[str, float]:
    """Serve one stream and count.

    On any address: what a sandbox of ours has on eth0 is not what others call it.
    """
    buffer = bytearray(CHUNK)
    with socket.create_server(("", port)) as server:
        server.settimeout(15)
        print("listening", flush=True)
        stream, _ = server.accept()
    with stream:
        stream.settimeout(15)
        begin = time.monotonic()
        while time.monotonic() - begin < warm_up:
            stream.recv_into(buffer)
        start = now = time.monotonic()
        counted = 0
        while now - start < seconds:
            got = stream.recv_into(buffer)
            if not got:
                raise ConnectionError("the sender went away")
            counted += got
            now = time.monotonic()
    return {"bytes": counted, "seconds": now - start}


def send(address: str, port: int) -> None:
    """Send until the receiver closes."""
    buffer = bytes(CHUNK)
    with socket.create_connection((address, port), timeout=15) as stream:
        try:
            while True:
                stream.sendall(buffer)
        except ConnectionError:
            return


def main(arguments: list[str]) -> None:
    """Run as told; see the module's text."""
    role, netns, cpu, address, port, warm_up, seconds = arguments
    enter(netns, int(cpu))
    if role == "receive":
        print(json.dumps(receive(int(port), float(warm_up), float(seconds))))
    else:
        send(address, int(port))


if __name__ == "__main__":
    main(sys.argv[1:])
