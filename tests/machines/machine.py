# SPDX-License-Identifier: Apache-2.0
"""A virtual machine as a jailed VMM runs it: in the slot's namespace, as nobody.

QEMU emulates the processor, so that it runs anywhere; the NIC is virtio, with every
offload that the tap gives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from geneve_ebpf.host import namespaces
from geneve_ebpf.host.processes import ending_with_parent
from tests.machines import initramfs
from tests.patience import PATIENCE

QEMU = "qemu-system-x86_64"
UID = 64999  # of whom runs the machines
MAC = "02:47:56:00:00:02"
BOOT_SECONDS, COMMAND_SECONDS = 240, 90  # on a busy machine; ten are usual

_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


class Machine:
    """One machine. `directory` holds its sockets and snapshots, and kernel and initramfs."""

    def __init__(
        self, directory: Path, kernel: Path, netns: Path, tap: str, *, incoming: Path | None = None
    ) -> None:
        """Start it. incoming: a snapshot to go on from, instead of booting."""
        self.name = netns.name
        self._said = b""
        self._commands = 0
        self._qmp_path = Path(tempfile.mkdtemp(dir=directory)) / "qmp"
        os.chown(self._qmp_path.parent, UID, UID)
        words = [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "pc", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-m", "96"),
            *("-kernel", kernel / "vmlinuz", "-initrd", directory / "initramfs"),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr nowatchdog"),
            *("-serial", "stdio", "-qmp", f"unix:{self._qmp_path},server=on,wait=off"),
            *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile="),
        ]
        if incoming:
            words += ["-incoming", f"exec:cat {incoming}"]
        namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                list(map(str, words)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: _jail(namespace, directory),
            )
        finally:
            os.close(namespace)
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        if incoming:
            self._qmp_until_running()
        else:
            self._wait(initramfs.READY.encode(), BOOT_SECONDS)

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """What a command prints. Fails if it fails."""
        status, text = self.attempt(command, seconds)
        assert status == 0, f"{command}: {text}"
        return text

    def attempt(self, command: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """Status of a command in the machine's shell, and what it printed."""
        self._commands += 1
        mark = f"ended {self._commands}:"
        self._said = b""
        self._in.write(f"{command}; echo '{mark}' $?\n".encode())
        self._in.flush()
        match = self._wait(re.escape(mark).encode() + rb" (\d+)\r?\n", seconds)
        return int(match[1]), self._said[: match.start()].decode(errors="replace").strip()

    def snapshot(self, path: Path) -> None:
        """Stop, and write everything into a file, from which others may go on."""
        path.touch()
        os.chown(path, UID, UID)
        with self._qmp() as say:
            say("stop")
            say("migrate", uri=f"exec:cat > {path}")
            end = time.monotonic() + COMMAND_SECONDS * PATIENCE
            while (state := say("query-migrate").get("status")) != "completed":
                assert state != "failed"
                assert time.monotonic() < end, state
                time.sleep(0.05)

    def close(self) -> None:
        """Switch it off."""
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()
        self._qmp_path.unlink(missing_ok=True)
        self._qmp_path.parent.rmdir()

    # -- inside

    def _wait(self, pattern: bytes, seconds: float) -> re.Match[bytes]:
        end = time.monotonic() + seconds * PATIENCE
        while not (match := re.search(pattern, self._said)):
            left = end - time.monotonic()
            ready = left > 0 and select.select([self._out], [], [], left)[0]
            part = self._out.read(1 << 16) if ready else b""
            assert part, f"{self.name} did not say {pattern!r}, but {self._said.decode()!r}"
            self._said += part
        return match

    @contextlib.contextmanager
    def _qmp(self):
        """A function that gives QEMU commands."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            end = time.monotonic() + COMMAND_SECONDS * PATIENCE
            while True:
                try:
                    door.connect(str(self._qmp_path))
                    break
                except OSError:
                    assert self._process.poll() is None, self._out.read()
                    assert time.monotonic() < end
                    time.sleep(0.05)
            door.settimeout(COMMAND_SECONDS * PATIENCE)
            stream = door.makefile("rw")

            def say(command: str, **arguments: object) -> dict[str, object]:
                stream.write(json.dumps({"execute": command, "arguments": arguments}))
                stream.flush()
                for line in stream:
                    answer = json.loads(line)
                    assert "error" not in answer, answer
                    if "return" in answer:
                        return answer["return"]
                raise AssertionError("QEMU hung up")

            say("qmp_capabilities")
            with contextlib.closing(stream):
                yield say

    def _qmp_until_running(self) -> None:
        with self._qmp() as say:
            end = time.monotonic() + BOOT_SECONDS * PATIENCE
            while (state := say("query-status")["status"]) == "inmigrate":
                assert time.monotonic() < end
                time.sleep(0.05)
            if state != "running":  # it was stopped when it was written
                say("cont")


def _jail(namespace: int, directory: Path) -> None:
    """Between fork and exec: into the namespace, a device node of its own, no privileges."""
    namespaces.enter(namespace)
    private, tun = directory / "dev", directory / "dev/tun"
    steps = (
        _libc.unshare(_CLONE_NEWNS),
        _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        _libc.mount(b"none", os.fsencode(private), b"tmpfs", 0, b"mode=755"),
    )
    if any(steps):
        os._exit(1)
    os.mknod(tun, stat.S_IFCHR | 0o600, os.makedev(10, 200))
    os.chown(tun, UID, UID)
    if _libc.mount(os.fsencode(tun), b"/dev/net/tun", None, _MS_BIND, None):
        os._exit(1)
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)
    _end_with_parent()


_end_with_parent = ending_with_parent()
