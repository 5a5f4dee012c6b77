# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, found out by trying. Never by its version.

Every probe is harmless: it makes an object that nothing uses and closes it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from geneve_ebpf.loader import bpf

_MMAPABLE, _NO_PREALLOC = 1 << 10, 1
_EXIT_ZERO = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit


@dataclass(frozen=True, slots=True)
class Capability:
    """One answer: `needed` ones stop the agent when they are missing."""

    name: str
    ok: bool
    needed: bool
    detail: str


def _make_map(kind: int, key: int, value: int, flags: int) -> None:
    os.close(bpf.call(bpf.MAP_CREATE, bpf.create_attr("<5I44x", kind, key, value, 1, flags)))


def _probe_program() -> None:
    os.close(bpf.load_program(_EXIT_ZERO))


def _helper_call(number: int) -> bytes:
    # r1 is the context and the other arguments are never set: the verifier
    # names the missing register if it knows the helper, and the helper if not.
    return b"\x85\x00\x00\x00" + number.to_bytes(4, "little") + _EXIT_ZERO


def _has_helper(number: int) -> Callable[[], None]:
    def probe() -> None:
        try:
            os.close(bpf.load_program(_helper_call(number)))
        except OSError as error:
            # EACCES: arguments refused, so the helper is known. EINVAL: unknown.
            if error.errno != errno.EACCES:
                raise

    return probe


def has_tcx() -> bool:
    """Whether programs can be linked to an interface's ingress by TCX (Linux 6.6).

    Asked with a link to an interface that no machine has: a kernel with TCX looks
    for it (ENODEV), one without does not know the attach type.
    """
    program = bpf.load_program(_EXIT_ZERO)
    try:
        os.close(
            bpf.call(
                bpf.LINK_CREATE,
                bpf.create_attr("<IIII32x", program, 0x7FFFFFFF, bpf.TCX_INGRESS, 0),
            )
        )
    except OSError as error:
        return error.errno == errno.ENODEV
    finally:
        os.close(program)
    return True


def _require_tcx() -> None:
    if not has_tcx():
        raise OSError(errno.EINVAL, "not known to this kernel")


_PROBES: tuple[tuple[str, bool, str, Callable[[], None]], ...] = (
    ("bpf", True, "programs of type sched_cls", _probe_program),
    (
        "mmapable_array",
        True,
        "arrays mapped into user space",
        lambda: _make_map(2, 4, 8, _MMAPABLE),
    ),
    ("lpm_trie", True, "longest-prefix look-up", lambda: _make_map(11, 8, 8, _NO_PREALLOC)),
    ("percpu_array", True, "counters without atomics", lambda: _make_map(6, 4, 16, 0)),
    ("fib_lookup", True, "the kernel's routes for outer packets", _has_helper(69)),
    ("csum_level", True, "checksums after decapsulation", _has_helper(135)),
    ("redirect_neigh", True, "the kernel's neighbours for outer packets", _has_helper(152)),
    ("redirect_peer", True, "delivery into a namespace", _has_helper(155)),
    ("tcx", False, "ordered hooks on uplinks; clsact is used without it", _require_tcx),
    (
        "btf",
        False,
        "type information of the kernel, for bpftool",
        lambda: _require_file("/sys/kernel/btf/vmlinux"),
    ),
)


def _require_file(path: str) -> None:
    if not Path(path).exists():
        raise OSError(errno.ENOENT, f"no {path}")


def probe() -> list[Capability]:
    """Every capability, in a fixed order. Needs CAP_BPF and CAP_NET_ADMIN."""
    answers = []
    for name, needed, purpose, attempt in _PROBES:
        try:
            attempt()
        except OSError as error:
            answers.append(Capability(name, False, needed, f"{purpose}: {error.strerror}"))
        else:
            answers.append(Capability(name, True, needed, purpose))
    return answers
