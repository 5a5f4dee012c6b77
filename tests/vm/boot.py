# SPDX-License-Identifier: Apache-2.0
"""Run the packet suite and the tests marked `kernel` on another kernel, in a virtual machine.

    script/test --kernel 6.1, and from there:
    python -m tests.vm.boot KERNEL PYTEST-ARGUMENT ...

KERNEL is a directory that `script/bootstrap kernel` made: vmlinuz, lib/modules and a
static busybox. QEMU emulates the processor (a kernel of the distribution hangs under
nested virtualisation, and not every machine has any), virtme-ng boots the kernel on
this machine's own file system, which it cannot change. The exit status is pytest's;
70 and above when the machine did not get that far, or its kernel complained.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from geneve_ebpf.host.processes import ending_with_parent
from tests.compiled import keep_programs

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 50  # and then it is stopped; a whole run takes about half of that
MEMORY = "4G"
PATIENCE = "10"  # times: see tests/patience.py
NO_BOOT, TIMED_OUT = 72, 73

PYTEST = [
    *("-p", "tests.vm.warm", "-p", "no:cacheprovider", "-m", "kernel"),
    *("--color=no", "--durations=15", "-o", "timeout=900", "--junit-xml=/run/report/junit.xml"),
]
RESULTS = ROOT / "build" / "kernel-junit.xml"


def _shared(tag: str, directory: Path | str, *more: str) -> list[str]:
    """A directory of this machine's for the guest to mount by its tag."""
    device = ",".join(("local", f"id={tag}", f"path={directory}", "security_model=none", *more))
    return ["-fsdev", device, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def command(kernel: Path, report: Path, arguments: list[str]) -> list[str]:
    """The virtual machine's command line."""
    qemu = [
        # More room for translated code than the default, or it is translated again and again.
        *("-accel", "tcg,thread=multi,tb-size=1024"),
        *_shared("root", "/", "readonly=on", "multidevs=remap"),
        *_shared("report", report),
    ]
    guest = [
        *("env", f"GENEVE_EBPF_TESTS_PATIENCE={PATIENCE}", "PYTHONUNBUFFERED=1", "HOME=/root"),
        *("bash", str(ROOT / "tests/vm/guest.sh"), str(kernel), str(ROOT)),
        *PYTEST,
        *arguments,
    ]
    return [
        *(sys.executable, str(Path(sys.executable).with_name("virtme-run"))),
        *(
            "--kimg",
            str(kernel / "vmlinuz"),
            "--mods",
            "auto",
            "--busybox",
            str(kernel / "busybox"),
        ),
        *("--qemu-bin", str(ROOT / "tests/vm/qemu")),
        *("--disable-kvm", "--disable-microvm", "--force-initramfs", "--force-9p"),
        *("--memory", MEMORY, "--cpus", str(min(os.cpu_count() or 1, 4))),
        *(f"--qemu-opt={word}" for word in qemu),
        # Nothing of what makes a kernel slow on purpose, nor complaints that it is slow.
        *(f"--kopt={word}" for word in ("mitigations=off", "nokaslr", "nowatchdog")),
        "--kopt=rcupdate.rcu_cpu_stall_suppress=1",
        "--kopt=geneve_ebpf.expendable=1",  # see tests/patience.py
        *("--show-boot-console", "--script-sh", shlex.join(guest)),
    ]


def _follow(process: subprocess.Popen[bytes], end: float) -> bool:
    """Show what the guest says, as it comes, without the boot before it; whether it ended in time.

    If the guest never speaks, the boot is shown.
    """
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    boot, speaks = b"", False
    while (left := end - time.monotonic()) > 0:
        select.select([process.stdout], [], [], left)
        part = process.stdout.read(1 << 16)
        if part == b"":
            break
        part = (part or b"").replace(b"\r", b"")
        if not speaks:
            boot += part
            at = boot.find(b"vm: ")
            if at < 0:
                continue
            part, speaks = boot[at:], True
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    if not speaks:
        sys.stdout.buffer.write(boot)
    return left > 0


def main(arguments: list[str]) -> int:
    """Compile, boot, follow, report. The exit status."""
    kernel, start = Path(arguments[0]).resolve(), time.monotonic()
    # Told to end or interrupted, we still stop the machine and remove the directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="gnv-vm-") as name:
        report = Path(name)
        keep_programs()
        process = subprocess.Popen(
            command(kernel, report, arguments[1:]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=ending_with_parent(),
        )
        try:
            in_time = _follow(process, start + MINUTES * 60)
        finally:
            process.kill()
            process.wait()
        status = _status(report) if in_time else TIMED_OUT
        with contextlib.suppress(FileNotFoundError):
            RESULTS.parent.mkdir(exist_ok=True)
            shutil.copy(report / "junit.xml", RESULTS)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    words = {TIMED_OUT: f"stopped after {MINUTES} minutes", NO_BOOT: "the machine did not come up"}
    how = words.get(status, f"status {status}")
    print(f"vm: {minutes} min {seconds} s in all; {how}", flush=True)
    return status


def _status(report: Path) -> int:
    try:
        return int((report / "status").read_text())
    except (FileNotFoundError, ValueError):
        return NO_BOOT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
