# SPDX-License-Identifier: Apache-2.0
"""Attaches that ask for something else than what is there."""

from __future__ import annotations

from geneve_ebpf.agent.places import Place
from geneve_ebpf.agent.reservations import parse_slot
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import AddressMode, Attachment, SlotKind, Vpc, parse_ipv4, parse_ipv6


def refuse_other(
    present: Attachment,
    its_vpc: str,
    vpc: Vpc,
    address: str | None,
    address6: str | None,
    slot_id: str | None,
    mode: AddressMode | None,
    its_kind: SlotKind,
    kind: SlotKind | None,
) -> None:
    """Raise SANDBOX_EXISTS unless the attachment is what is asked for.

    its_vpc, its_kind: the name of the VPC that it is in, the kind of its slot; None asks
    for nothing in particular.
    """
    details: dict[str, object] = {}
    if present.endpoint.vni != vpc.vni:
        details["vpc"] = {"have": its_vpc, "want": vpc.name}
    have = present.endpoint.address
    if address is not None and parse_ipv4(address) != have:
        details["address"] = {"have": have and str(have), "want": address}
    have6 = present.endpoint.address6
    if address6 is not None and parse_ipv6(address6) != have6:
        details["address6"] = {"have": have6 and str(have6), "want": address6}
    if slot_id is not None and parse_slot(slot_id) != present.slot:
        details["slot"] = {"have": f"slot-{present.slot}", "want": slot_id}
    if mode is not None and mode is not present.mode:
        details["mode"] = {"have": present.mode.value, "want": mode.value}
    if kind is not None and kind is not its_kind:
        details["kind"] = {"have": its_kind.value, "want": kind.value}
    if details:
        raise GeneveError(
            Code.SANDBOX_EXISTS,
            f"sandbox {present.sandbox} is attached with another {', '.join(details)}",
            hint="detach it first, or choose another name",
            details=details,
        )


def other_kind(place: Place, wanted: SlotKind) -> GeneveError:
    """What is said where a slot is named, and a kind that it is not of."""
    return GeneveError(
        Code.SLOT_TAKEN,
        f"slot-{place.index} is of kind {place.kind.value}, not {wanted.value}",
        hint="leave the kind out, or name another slot",
        field="kind",
    )
