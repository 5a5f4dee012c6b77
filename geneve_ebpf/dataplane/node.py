# SPDX-License-Identifier: Apache-2.0
"""Bring a node's data plane up, and take it down.

The work is `node_setup`'s, in a short-lived child: neither netlink libraries
nor LLVM stay in the caller's process.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from geneve_ebpf.dataplane.config import Config, read_config
from geneve_ebpf.dataplane.plane import DataPlane
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host.processes import ending_with_parent, sooner_killed
from geneve_ebpf.loader import bpf
from geneve_ebpf.loader.pins import Pins
from geneve_ebpf.model import NodeSettings


@dataclass(frozen=True, slots=True)
class Facts:
    """What `up` found and made; kept beside the pins for the processes of the node."""

    block: int  # shared tc block of the sandbox interfaces' ingress; their egress: the next
    program: int  # id of sandbox_tx on it
    guard: int  # id of sandbox_guard on the next
    uplink_hook: str  # "tcx" or "clsact"
    boot: str  # "compiled", "kept" (compiled earlier) or "adopted"
    mtu: int  # bytes, of eth0 in slots
    remark: str  # about programs that were not kept, or not used as they were; or ""
    anchor: int  # index of the interface that holds the blocks
    made_for: str  # `fingerprint` of the settings


class NotDone(GeneveError):
    """The child that does the work was not to be had, or was killed: it may be had later."""


def bring_up(settings: NodeSettings) -> DataPlane:
    """Make the node ready for slots, or adopt it as it stands, and open its maps.

    Compiles only when these very programs are neither pinned nor kept. What forwards
    goes on forwarding meanwhile. Raises GeneveError: NOT_PERMITTED,
    MOUNT_NAMESPACE, KERNEL_UNSUPPORTED, LOAD_FAILED, LAYOUT_MISMATCH,
    NODE_IN_USE (another guest than slots were made for, or VTEP or port than sandboxes
    are attached with),
    NODE_SETUP. A start that fails hangs nothing on any interface that was not
    hung before, and the next one picks up what it made.
    """
    look_after(settings)
    return DataPlane.open(settings.run_directory)


def adopt(settings: NodeSettings) -> DataPlane | None:
    """Open the maps of a node that was brought up with these very settings and programs.

    Looks at its pins and its anchor only, so that an agent which comes after one
    that died serves at once, however many slots there are. Whether everything
    still hangs where it should is for `look_after` to see, soon. None if there is no
    such node: `bring_up` makes it so, or says why not.
    """
    try:
        found = facts(settings.run_directory)
        if found.made_for != fingerprint(settings):
            return None
        pins = Pins(settings.run_directory)
        if not pins.have_programs() or read_config(pins) != Config.of(settings):
            return None
        # Not in another namespace of the same name, nor after somebody removed it.
        if not socket.if_indextoname(found.anchor).startswith("gnv-"):
            return None
        return DataPlane.open(settings.run_directory)
    except (GeneveError, OSError):
        return None


def look_after(settings: NodeSettings) -> None:
    """`bring_up`'s work without its maps: hang what does not hang. Raises as that does."""
    _in_child("up", settings)


def fingerprint(settings: NodeSettings) -> str:
    """Names all that `bring_up` makes a node with. The rest is the agent's and the slot process's,
    who see to it at their start: slots to keep, who opens taps, merging, metrics, addresses' rest.
    """
    lasting = replace(
        settings,
        slots=0,
        tap_slots=0,
        host_tap_slots=0,
        tap_owner=0,
        metrics_listen="",
        address_rest=0.0,
        merge="",
    )
    return hashlib.sha256(lasting.as_json().encode()).hexdigest()[:16]


def tear_down(settings: NodeSettings) -> None:
    """Remove everything that was made for the node, slots and sandboxes too.

    No error if there is nothing. The desired state is not touched.
    """
    _in_child("down", settings)


def facts(run_directory: Path) -> Facts:
    """What the last `bring_up` found. Raises NODE_SETUP if there was none."""
    try:
        return Facts(**json.loads((run_directory / "facts.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise GeneveError(
            Code.NODE_SETUP,
            f"the node at {run_directory} is not up: {error}",
            hint="start the agent: geneve-ebpf agent run --config FILE",
        ) from None


def splice_program(run_directory: Path) -> int:
    """A descriptor of tap_splice, for those who make taps in slots' namespaces."""
    return bpf.open_pin(Pins(run_directory).program("tap_splice"))


def write_facts(run_directory: Path, found: Facts) -> None:
    """For `facts` to find, in whatever process."""
    path = run_directory / "facts.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({name: getattr(found, name) for name in Facts.__slots__}))
    draft.replace(path)


def _in_child(what: str, settings: NodeSettings) -> None:
    # An agent that is killed meanwhile may have a successor at once.
    end_with_us = ending_with_parent()

    def between_fork_and_exec() -> None:
        end_with_us()
        sooner_killed()

    try:
        child = subprocess.run(
            [sys.executable, "-m", "geneve_ebpf.dataplane.node_setup", what, settings.as_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=between_fork_and_exec,
        )
    except (OSError, subprocess.SubprocessError) as refused:
        why = refused.strerror if isinstance(refused, OSError) else refused
        raise NotDone(
            Code.NODE_SETUP,
            f"no process can be started to bring the node {what}: {why}",
            hint="free descriptors, memory or processes, then try again",
        ) from None
    if child.returncode == 0:
        return
    if child.returncode < 0:
        raise NotDone(
            Code.NODE_SETUP,
            f"who was to bring the node {what} was killed by signal {-child.returncode}",
            hint="the kernel's log says whether it was for want of memory; then try again",
        )
    try:
        error = json.loads(child.stdout.splitlines()[-1])
        failure = GeneveError(
            Code[error["code"]], error["message"], hint=error["hint"], field=error["field"]
        )
    except (IndexError, ValueError, KeyError):
        failure = GeneveError(
            Code.INTERNAL,
            f"bringing the node {what} ended with status {child.returncode}",
            hint="its words are on stderr",
        )
    raise failure
