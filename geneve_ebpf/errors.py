# SPDX-License-Identifier: Apache-2.0
"""Errors: one class, one closed list of codes.

Every failure that a user can cause or must act on is a `GeneveError`. Its code
says what happened; the code alone decides the HTTP status, the exit status of
the command and whether the same call may be repeated. Anything else that is
raised is a defect of ours: the agent logs it whole and answers `internal`.

`docs/api.md` lists the codes; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Exit(int, Enum):
    """Exit status of the `geneve-ebpf` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNREACHABLE = 5
    BUSY = 6
    NOT_PERMITTED = 7
    DEGRADED = 8


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a code stands for, wherever it shows."""

    status: int  # of the HTTP answer
    exit: Exit  # of the command
    retryable: bool  # the same call may succeed later, unchanged
    text: str  # for the table in docs/api.md


class Code(Enum):
    """The closed list of error codes. Clients branch on these: never rename one."""

    # The request itself is wrong.
    BAD_REQUEST = Meaning(400, Exit.USAGE, False, "the request is not what this path takes")
    BAD_NAME = Meaning(400, Exit.USAGE, False, "a name is not [a-z0-9][a-z0-9._-]{0,62}")
    BAD_ADDRESS = Meaning(400, Exit.USAGE, False, "an address is malformed")
    BAD_PREFIX = Meaning(400, Exit.USAGE, False, "a prefix is malformed or has host bits set")
    BAD_VNI = Meaning(400, Exit.USAGE, False, "a VNI is not in 1..16777215")
    BAD_MAC = Meaning(400, Exit.USAGE, False, "a MAC address is malformed or not unicast")
    BAD_MTU = Meaning(400, Exit.USAGE, False, "an MTU is not in 576..65535")
    BAD_NETNS = Meaning(
        400, Exit.USAGE, False, "the path is no network namespace that a slot can be made in"
    )
    BAD_INTERFACE = Meaning(
        400, Exit.USAGE, False, "the interface is no veth that can be a slot's as it is"
    )
    BAD_CONFIG = Meaning(400, Exit.USAGE, False, "the agent's configuration is wrong")
    ADDRESS_OUTSIDE_VPC = Meaning(400, Exit.USAGE, False, "the address is in no prefix of the VPC")
    ADDRESS_RESERVED = Meaning(
        400,
        Exit.USAGE,
        False,
        "the address is a prefix's network, gateway or broadcast address, or in IPv6 its first",
    )
    PREFIX_OVERLAPS_GUEST = Meaning(
        400, Exit.USAGE, False, "the prefix overlaps the guest's own range"
    )
    VTEP_FAMILY = Meaning(
        400, Exit.USAGE, False, "the VTEP is not of the family, IPv4 or IPv6, of the node's own"
    )
    PATH_UNKNOWN = Meaning(404, Exit.USAGE, False, "no such path in this API")
    METHOD_NOT_ALLOWED = Meaning(405, Exit.USAGE, False, "the path does not take this method")
    TOO_LARGE = Meaning(413, Exit.USAGE, False, "the request exceeds the size limit")
    # What it names is not there.
    VPC_NOT_FOUND = Meaning(404, Exit.NOT_FOUND, False, "no VPC has this name")
    VTEP_NOT_FOUND = Meaning(404, Exit.NOT_FOUND, False, "no VTEP has this address")
    ROUTE_NOT_FOUND = Meaning(404, Exit.NOT_FOUND, False, "the VPC has no such route")
    SANDBOX_NOT_FOUND = Meaning(404, Exit.NOT_FOUND, False, "no sandbox of this name is attached")
    SLOT_NOT_FOUND = Meaning(404, Exit.NOT_FOUND, False, "no slot has this id")
    OPERATION_NOT_FOUND = Meaning(404, Exit.NOT_FOUND, False, "no operation has this id")
    EVENTS_GONE = Meaning(410, Exit.NOT_FOUND, False, "events after that number are not kept")
    # It is there, and differs.
    VPC_EXISTS = Meaning(409, Exit.CONFLICT, False, "the VPC exists with other settings")
    VNI_TAKEN = Meaning(409, Exit.CONFLICT, False, "another VPC has this VNI")
    PREFIX_OVERLAP = Meaning(409, Exit.CONFLICT, False, "two prefixes of one VPC overlap")
    VPC_IN_USE = Meaning(409, Exit.CONFLICT, False, "sandboxes or routes still use the VPC")
    VTEP_IN_USE = Meaning(409, Exit.CONFLICT, False, "routes still use the VTEP")
    ROUTE_EXISTS = Meaning(409, Exit.CONFLICT, False, "the prefix has a different route")
    SANDBOX_EXISTS = Meaning(
        409, Exit.CONFLICT, False, "the sandbox is attached with other settings"
    )
    ADDRESS_IN_USE = Meaning(409, Exit.CONFLICT, False, "another sandbox has the address")
    ADDRESS_RESTING = Meaning(
        409, Exit.BUSY, True, "the address was another sandbox's a moment ago"
    )
    SLOT_TAKEN = Meaning(409, Exit.CONFLICT, False, "the slot is not free to be used so")
    INTERFACE_EXISTS = Meaning(
        409, Exit.CONFLICT, False, "the namespace has such an interface, address or route already"
    )
    TAP_BUSY = Meaning(409, Exit.BUSY, True, "the tap is open already: it has one queue")
    NODE_IN_USE = Meaning(
        409, Exit.CONFLICT, False, "the node has sandboxes or slots, or another has its namespace"
    )
    OPERATION_STATE = Meaning(
        409, Exit.CONFLICT, False, "the operation is not in a state in which that can be done"
    )
    KEY_IN_USE = Meaning(
        409, Exit.BUSY, True, "the request that first had this Idempotency-Key is not done yet"
    )
    KEY_REUSED = Meaning(
        422, Exit.CONFLICT, False, "another request had this Idempotency-Key before"
    )
    GENERATION_MISMATCH = Meaning(
        412,
        Exit.CONFLICT,
        False,
        "the sandbox or the state changed since that generation or revision",
    )
    # Not now, or not here.
    BUSY = Meaning(429, Exit.BUSY, True, "too many requests wait: retry here, later")
    NO_SLOT = Meaning(503, Exit.BUSY, True, "no slot is ready: place it elsewhere or wait")
    NODE_CORDONED = Meaning(
        503, Exit.BUSY, True, "the node takes no new sandboxes: place it elsewhere"
    )
    DEADLINE_EXCEEDED = Meaning(
        504, Exit.BUSY, True, "the request's own deadline passed; nothing was changed"
    )
    NO_ADDRESS = Meaning(503, Exit.BUSY, True, "the VPC has no free address on this node")
    MAP_FULL = Meaning(507, Exit.BUSY, False, "a BPF map of this node is full")
    DEGRADED = Meaning(503, Exit.DEGRADED, True, "the node runs, but not with all its parts")
    # The caller or the machine.
    NOT_PERMITTED = Meaning(403, Exit.NOT_PERMITTED, False, "root is needed")
    AGENT_UNREACHABLE = Meaning(503, Exit.UNREACHABLE, True, "no agent answers on the socket")
    AGENT_RUNNING = Meaning(409, Exit.CONFLICT, False, "another agent serves this node")
    KERNEL_UNSUPPORTED = Meaning(500, Exit.FAILED, False, "the kernel lacks something we need")
    LOAD_FAILED = Meaning(500, Exit.FAILED, False, "the programs did not compile or verify")
    LAYOUT_MISMATCH = Meaning(
        409, Exit.CONFLICT, False, "the node's pinned maps have another layout"
    )
    MOUNT_NAMESPACE = Meaning(500, Exit.FAILED, False, "not in the machine's own mount namespace")
    NODE_SETUP = Meaning(500, Exit.FAILED, False, "an interface or hook could not be set up")
    STATE_STORE = Meaning(
        500, Exit.FAILED, False, "the node's file of desired state cannot be read or written"
    )
    INTERNAL = Meaning(500, Exit.FAILED, False, "a defect of ours; the agent's log has it whole")

    @property
    def slug(self) -> str:
        """The code as it stands in JSON."""
        return self.name.lower()


class GeneveError(Exception):
    """A failure with a code, one line of text, and what to do about it.

    `field` names the request's field at fault, dotted for nested ones.
    `details` is for machines: for SANDBOX_EXISTS it maps each differing field
    to what is there.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        field: str = "",
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.field = field
        self.details = details or {}

    def as_json(self) -> dict[str, object]:
        """The body of an HTTP answer: {"error": {code, message, hint, retryable, field}}."""
        error: dict[str, object] = {
            "code": self.code.slug,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.code.value.retryable,
            "field": self.field,
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}

    @classmethod
    def from_json(cls, error: dict[str, Any]) -> GeneveError:
        """What `as_json` made: the value of its "error". A code we do not know becomes INTERNAL."""
        slug, message = str(error.get("code", "")), str(error.get("message", ""))
        code = _BY_SLUG.get(slug)
        if code is None:  # a newer agent
            code, message = Code.INTERNAL, f"{message} ({slug})"
        details = error.get("details")
        return cls(
            code,
            message,
            hint=str(error.get("hint", "")),
            field=str(error.get("field", "")),
            details=details if isinstance(details, dict) else None,
        )


_BY_SLUG = {code.slug: code for code in Code}
