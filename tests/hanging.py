# SPDX-License-Identifier: Apache-2.0
"""A file system that hangs: FUSE with a server that reads what it is asked, and never answers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

_INIT = 26
_MNT_FORCE, _MNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def hanging(directory: Path) -> Iterator[None]:
    """Whoever looks up a name in the directory meanwhile waits, and not even SIGKILL ends it."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    target = os.fsencode(directory)
    if _libc.mount(b"hangs", target, b"fuse", 0, options):
        os.close(device)
        raise OSError(ctypes.get_errno(), "mount")
    server = threading.Thread(target=_serve, args=(device,))
    server.start()
    try:
        yield
    finally:
        # Forced, it fails all that waits, the server's read too.
        _libc.umount2(target, _MNT_FORCE)
        _libc.umount2(target, _MNT_DETACH)
        server.join(30)
        os.close(device)


def _serve(device: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            request = os.read(device, 1 << 17)
            _, opcode, unique = struct.unpack_from("=IIQ", request)
            if opcode == _INIT:
                # The header, then struct fuse_init_out: version 7.31, and as little as may be.
                body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 4096, 1, 1, 0, 0)
                os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
