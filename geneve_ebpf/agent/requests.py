# SPDX-License-Identifier: Apache-2.0
"""The bodies that requests may have, and what is said about one that does not fit."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import GUEST_INTERFACE, AddressMode, SlotKind

T = TypeVar("T")
_ENUMS: dict[str, type[SlotKind] | type[AddressMode]] = {"kind": SlotKind, "mode": AddressMode}


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What all have in common: an unknown field is a mistake, never ignored."""


class Nothing(Body):
    """No fields at all."""


class Attach(Body):
    """PUT /v1/sandboxes/{id}."""

    vpc: str
    address: str | None = None  # IPv4
    address6: str | None = None
    slot: str | None = None
    kind: SlotKind | None = None  # of slot; None: the first that the node keeps
    mode: AddressMode | None = None  # None: clone
    verify: bool = False


class Reserve(Body):
    """POST /v1/slots:reserve."""

    kind: SlotKind | None = None  # as above
    # The uid that the tap is to belong to; 2^32 - 1 is nobody, and a tap without an owner
    # everybody's.
    owner: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFE)] | None = None


class AddSlot(Body):
    """POST /v1/slots."""

    netns: str  # path of a namespace that the caller made
    interface: str = GUEST_INTERFACE  # to be made in there
    existing: bool = False  # it is there: the end of a veth, which becomes the slot's


class BatchAttach(Body):
    """An item of a batch's `attach`."""

    sandbox: str
    vpc: str
    address: str | None = None  # IPv4
    address6: str | None = None
    slot: str | None = None
    kind: SlotKind | None = None  # of slot; None: the first that the node keeps
    mode: AddressMode | None = None  # None: clone


class BatchDetach(Body):
    """An item of a batch's `detach`."""

    sandbox: str
    generation: int | None = None


class Batch(Body):
    """POST /v1/sandboxes:batch, if all of its items are such."""

    attach: list[BatchAttach] = []
    detach: list[BatchDetach] = []


class RawBatch(Body):
    """The same, if some are not. Items are decoded one by one: each stands on its own."""

    attach: list[msgspec.Raw] = []
    detach: list[msgspec.Raw] = []


class VpcSettings(Body):
    """PUT /v1/vpcs/{name}."""

    vni: int
    prefixes: list[str]


class VpcNamed(Body):
    """POST /v1/vpcs, and `vpcs` of a state."""

    name: str
    vni: int
    prefixes: list[str]


class VtepSettings(Body):
    """PUT /v1/vteps/{address}."""

    mtu: int = 0


class VtepNamed(Body):
    """`vteps` of a state."""

    address: str
    mtu: int = 0


class RouteBody(Body):
    """POST and PUT /v1/routes, and `routes` of a state."""

    vpc: str
    prefix: str
    kind: str
    vtep: str | None = None
    mac: str | None = None


class State(Body):
    """PUT /v1/state. Items are decoded one by one, in pieces."""

    vpcs: list[msgspec.Raw] = []
    vteps: list[msgspec.Raw] = []
    routes: list[msgspec.Raw] = []
    revision: int | None = None
    schema: str | None = None  # so that what GET answered can be sent back


class Down(Body):
    """POST /v1/node:down."""

    force: bool = False


class OperationIds(Body):
    """POST /v1/operations:retry and :drop."""

    operations: list[str] = []
    failed: bool = False  # all that have


class Decoder:
    """Decodes one kind of body. Decoders are made once: making one costs 20 us."""

    def __init__(self, kind: type[Any]) -> None:
        self._decode = msgspec.json.Decoder(kind).decode

    def __call__(self, body: bytes | msgspec.Raw, where: str = "") -> Any:
        """The body. Raises BAD_REQUEST, naming the field below `where`."""
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise refusal(str(error), where) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            text = "nested too deep" if isinstance(error, RecursionError) else str(error)
            text = text.removeprefix("JSON is malformed: ")
            text = f"{text[:1].lower()}{text[1:]}"
            raise GeneveError(
                Code.BAD_REQUEST,
                f"the body is not JSON: {text}" if body else "the request has no body",
                hint="send one JSON object",
                field=where,
            ) from None


def batch_of(body: bytes) -> Batch | RawBatch:
    """A batch, decoded as far as its items are right. Raises BAD_REQUEST."""
    try:
        return _decode_batch(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw: RawBatch = RAW_BATCH(body)
        return raw


def refusal(text: str, where: str = "") -> GeneveError:
    """A BAD_REQUEST from what msgspec says about a body."""
    message, _, place = text.partition(" - at `$")
    path = place.rstrip("`").replace("[...]", "[]").lstrip(".")
    unknown = re.search(r"(?:unknown|required) field `([^`]*)`", message)
    if unknown:
        path = f"{path}.{unknown[1]}" if path else unknown[1]
    if where:
        path = f"{where}.{path}" if path else where
    message = message.replace("Object contains", "the body has an").replace(
        "Object missing", "the body misses the"
    )
    message = f"{message[:1].lower()}{message[1:]}"
    hint = "docs/api.md lists each path's fields"
    allowed = _ENUMS.get(path.rpartition(".")[2])
    if allowed is not None and message.startswith("invalid enum value"):
        hint = f"one of {', '.join(one.value for one in allowed)}"
    return GeneveError(
        Code.BAD_REQUEST,
        f"{path}: {message}" if path else f"the body: {message}",
        hint=hint,
        field=path,
    )


_decode_batch = msgspec.json.Decoder(Batch).decode
NOTHING = Decoder(Nothing)
ATTACH = Decoder(Attach)
RESERVE = Decoder(Reserve)
ADD_SLOT = Decoder(AddSlot)
RAW_BATCH = Decoder(RawBatch)
BATCH_ATTACH = Decoder(BatchAttach)
BATCH_DETACH = Decoder(BatchDetach)
VPC_SETTINGS = Decoder(VpcSettings)
VPC_NAMED = Decoder(VpcNamed)
VTEP_SETTINGS = Decoder(VtepSettings)
VTEP_NAMED = Decoder(VtepNamed)
ROUTE = Decoder(RouteBody)
STATE = Decoder(State)
DOWN = Decoder(Down)
OPERATIONS = Decoder(OperationIds)
