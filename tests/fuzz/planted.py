# SPDX-License-Identifier: Apache-2.0
"""Does it bite? Bugs planted in the C, one at a time, and the frames it takes to find each.

Each is a replacement in a copy of the sources, which compiles and passes the
verifier: what a slip of the hand or of the mind would leave.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_MOST = 2_000_000  # frames


@dataclass(frozen=True, slots=True)
class Bug:
    """`old` stands in `file` exactly once and becomes `new`."""

    what: str
    file: str
    old: str
    new: str


BUGS = (
    Bug(
        "a later fragment is told by half of its offset",
        "bpf/lib/inner.h",
        "if (start[2] || start[3] & 0xf8) {",
        "if (start[3] & 0xf8) {",
    ),
    Bug(
        "a UDP checksum of zero is brought up to date",
        "bpf/lib/translate.h",
        "flags |= BPF_F_MARK_MANGLED_0;",
        "flags |= 0;",
    ),
    Bug(
        "ECT(1) and ECT(0) are mixed up in decapsulation",
        "bpf/lib/ecn.h",
        "!(outer == ECT_1 && ecn == ECT_0)",
        "!(outer == ECT_0 && ecn == ECT_1)",
    ),
    Bug(
        "the longest Geneve options are read as short ones",
        "bpf/lib/geneve.h",
        "#define OPTION_LENGTH_MASK 0x1f",
        "#define OPTION_LENGTH_MASK 0x0f",
    ),
    Bug(
        "a UDP length beyond the outer packet is believed",
        "bpf/lib/arrival.h",
        "if (arrival->end > skb->len || end > arrival->end ||",
        "if (arrival->end > skb->len || end > skb->len ||",
    ),
    Bug(
        "the highest bit of a VNI is lost",
        "bpf/lib/arrival.h",
        "arrival->vni = from_be32(geneve.vni) >> 8;",
        "arrival->vni = (from_be32(geneve.vni) >> 8) & 0x7fffff;",
    ),
    Bug(
        "an MSS at an odd offset spoils the checksum",
        "bpf/lib/mss.h",
        "if ((value - inner->l4) & 1) {",
        "if ((value - inner->l3) & 2) {",
    ),
    Bug(
        "of a packet whose padding alone is too long the sender is told",
        "bpf/lib/too_big.h",
        "if (!skb->gso_size && inner->length <= mtu)",
        "if (!skb->gso_size && inner->length < mtu)",
    ),
    Bug(
        "a drop behind decapsulation counts what is left of the frame",
        "bpf/lib/receive.h",
        """		reason = label_frame(skb, slot, binding);
	if (reason)
		return drop_bytes(bytes, DIRECTION_RX, reason);""",
        """		reason = label_frame(skb, slot, binding);
	if (reason)
		return drop(skb, DIRECTION_RX, reason);""",
    ),
    Bug(
        "the sum that a device took of the frame is not kept true over IPv6",
        "bpf/lib/deliver.h",
        "BPF_F_RECOMPUTE_CSUM);",
        "0);",
    ),
    Bug(
        "a packet that fits is taken for one that was too big on the way",
        "bpf/lib/path_mtu.h",
        "|| mtu >= sent)",
        "|| mtu > sent)",
    ),
    Bug(
        "what a sandbox receives of its neighbour is counted with the sender",
        "bpf/lib/forward.h",
        "row = slot_counters.lookup(&to_slot);",
        "row = slot_counters.lookup(&slot);",
    ),
    Bug(
        "a peer's segment size is lowered without regard to its VTEP's path MTU",
        "bpf/lib/receive.h",
        "return clamp_mss(skb, inner, least(mtu, path_mtu(sender)) - more);",
        "return clamp_mss(skb, inner, mtu - more);",
    ),
    Bug(
        "behind extension headers a quoted checksum is looked for in the first of them",
        "bpf/lib/translate.h",
        "at = checksum_offset(family, quoted.protocol);",
        "quoted.l4 = quote + size;\n\tat = checksum_offset(family, quoted.protocol);",
    ),
    Bug(
        "an outer sum around a partial inner one is believed whatever the inner one is",
        "bpf/lib/arrival.h",
        "field != fold(pseudo_sum(&source, &inner.destination,",
        "!fold(pseudo_sum(&source, &inner.destination,",
    ),
    Bug(
        "between two sandboxes of a node the receiver is taken for as native as the sender",
        "bpf/lib/forward.h",
        "reason = address_to_guest(skb, config, to, inner, quotes);",
        "reason = address_to_guest(skb, config, from, inner, quotes);",
    ),
    Bug(
        "of a native guest what an attach that was cut short has left is believed",
        "bpf/lib/guest.h",
        "return binding->native && *(const volatile __u64 *)&binding->generation;",
        "return binding->native;",
    ),
    Bug(
        "what is in a DHCPv6 association may go on behind it",
        "bpf/lib/dhcp6.h",
        "if (next > ia_end)",
        "if (next > end)",
    ),
    Bug(
        "who came into a slot gets what the relay still had for who was there before",
        "bpf/relay_rx.bpf.c",
        "*(volatile __u64 *)&to->generation != label.generation)",
        "!*(volatile __u64 *)&to->generation)",
    ),
)


def plant(bug: Bug, tree: Path) -> None:
    """Change the copy. Raises ValueError if the code has moved on."""
    path = tree / bug.file
    text = path.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.file} has {text.count(bug.old)} times: {bug.old}")
    path.write_text(text.replace(bug.old, bug.new))


def hunt(bug: Bug, seed: int) -> tuple[int, str]:
    """(frames until it was found, what the fuzzer said); 0 frames: it was not."""
    with tempfile.TemporaryDirectory(prefix="gnv-planted-") as name:
        tree = Path(name)
        for part in ("bpf", "geneve_ebpf", "tests"):
            shutil.copytree(_ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        plant(bug, tree)
        ran = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--frames", str(_MOST), "--seed", str(seed)],
            cwd=tree,
            env={**os.environ, "CACHE_DIRECTORY": str(tree / "kept")},
            capture_output=True,
            text=True,
            check=False,
        )
    count = re.search(r"^([\d,]+) frames in .* ([1-9]\d*) mismatches", ran.stdout, re.MULTILINE)
    if not count:
        return 0, (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-1]
    said = ran.stdout[count.end() :].strip().splitlines()[0]
    return int(count[1].replace(",", "")), re.sub(r"[0-9a-f]{40,}", "…", said)


def main(seed: int) -> int:
    """Hunt each; 0 if all were found."""
    missed = 0
    for bug in BUGS:
        frames, said = hunt(bug, seed)
        missed += not frames
        found = f"after {frames:,} frames" if frames else "NOT FOUND"
        print(f"{bug.what}\n    {found}: {said}", flush=True)
    print(f"{len(BUGS) - missed} of {len(BUGS)} found")
    return 1 if missed else 0
