# SPDX-License-Identifier: Apache-2.0
"""/v1/sandboxes:batch: many at once, each on its own.

What makes an attach dear is what surrounds it: items that ask for nothing but a VPC and a
kind of slot go through the checks, the maps, the events and the log in rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import sandbox_text, schema
from geneve_ebpf.agent.api.call import Call, Failure, Shared, Table, encode, json_answer, timeout_of
from geneve_ebpf.agent.api.sandboxes import SandboxPaths
from geneve_ebpf.agent.events import Attached
from geneve_ebpf.agent.exchange import Answer, Request
from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import AddressMode, Attachment

ROW = 32  # attaches that are done together: as long as others may have to wait


class BatchPaths:
    """Answers for batches. `failure` makes the answer to an item that raised."""

    def __init__(self, shared: Shared, sandboxes: SandboxPaths, failure: Failure) -> None:
        self._shared = shared
        self._sandboxes = sandboxes
        self._failure = failure

    def table(self) -> Table:
        """The paths."""
        return {"/v1/sandboxes:batch": {"POST": (self._batch,)}}

    async def _batch(self, call: Call) -> Answer:
        if timeout_of(call.request) is not None:
            raise GeneveError(
                Code.BAD_REQUEST,
                "a batch waits for no slots: it takes no Request-Timeout",
                hint="leave it out, and repeat what was answered no_slot; or attach each alone",
                field="Request-Timeout",
            )
        batch = requests.batch_of(call.request.body)
        results: list[str] = []
        natives: dict[int, str] = {}
        await Pace().through(self._steps_of(call.request, batch, results, natives))
        for at, name in natives.items():
            try:
                await self._shared.node.settle(name, partial(self._sandboxes.detach, call.request))
            except GeneveError as error:
                results[at] = _as_item(self._failure(call.request, error), name)
        text = ",".join(results)
        return Answer(
            200,
            f'{{"schema":"{schema("batch")}","guest":{self._shared.guest_text},'
            f'"results":[{text}]}}'.encode(),
        )

    def _steps_of(
        self,
        request: Request,
        batch: requests.Batch | requests.RawBatch,
        results: list[str],
        natives: dict[int, str],
    ) -> Iterator[None]:
        """Carry a batch out in pieces; results: each item's status and body in one object.

        natives: those that have yet to settle, by their place among the results.
        """
        detach: Sequence[requests.BatchDetach | msgspec.Raw] = batch.detach
        attach: Sequence[requests.BatchAttach | msgspec.Raw] = batch.attach
        for number, one in enumerate(detach):
            results.append(self._detach(request, one, f"detach[{number}]"))
            yield
        at = 0
        while at < len(attach):
            row = _row_of(attach[at : at + ROW])
            done = self._attach_row(request, row, results) if len(row) > 1 else 0
            at += done
            if done < max(1, len(row)):  # what stands in the way of the next is said to it alone
                where = f"attach[{at}]"
                results.append(self._attach(request, attach[at], where, natives, len(results)))
                at += 1
            yield

    def _detach(
        self, request: Request, one: requests.BatchDetach | msgspec.Raw, where: str
    ) -> str:
        try:
            item = requests.BATCH_DETACH(one, where) if isinstance(one, msgspec.Raw) else one
            found = self._sandboxes.detached(request, item.sandbox, item.generation)
            if found is None:
                return _as_item(Answer(204), item.sandbox)
            del found["sandbox"]  # every item has it
            return _as_item(json_answer(200, found), item.sandbox)
        except BaseException as error:
            return _as_item(self._failure(request, error), _name_in(one))

    def _attach(
        self,
        request: Request,
        one: requests.BatchAttach | msgspec.Raw,
        where: str,
        natives: dict[int, str],
        at: int,
    ) -> str:
        # An item's time starts with the item: what was before it is not its wait.
        received = time.perf_counter_ns()
        sandboxes = self._sandboxes
        try:
            item = requests.BATCH_ATTACH(one, where) if isinstance(one, msgspec.Raw) else one
            attachment, timing = self._shared.node.attach(
                *(item.sandbox, item.vpc, item.address, item.address6, item.slot, received),
                *(item.kind, item.mode),
            )
            if attachment.mode is AddressMode.NATIVE:
                natives[at] = item.sandbox
            more = ""
            if timing is not None and (item.address or item.address6):
                more = sandboxes.warnings(attachment)
            sandboxes.tell_attach(request, attachment, item.vpc, timing)
            return self._item(200 if timing is None else 201, attachment, item.vpc, more)
        except BaseException as error:
            return _as_item(self._failure(request, error), _name_in(one))

    def _attach_row(
        self, request: Request, row: list[requests.BatchAttach], results: list[str]
    ) -> int:
        """Attach the first ones together; how many that were."""
        vpc = row[0].vpc
        try:
            attachments, places, timing = self._shared.node.attach_row(
                [one.sandbox for one in row], vpc, row[0].kind
            )
        except Exception as error:
            self._failure(request, error)  # which logs it; each is then tried alone
            return 0
        if not attachments:
            return 0
        results += [
            f'{{"status":201,{sandbox_text(one, place, vpc)}}}'
            for one, place in zip(attachments, places, strict=True)
        ]
        self._shared.events.add_many(
            "attach",
            [Attached(attachment, vpc, 201, timing.total) for attachment in attachments],
            *(request.trace, request.peer.uid, request.peer.pid),
        )
        return len(attachments)

    def _item(self, status: int, attachment: Attachment, vpc: str, more: str = "") -> str:
        text = self._sandboxes.own_text(attachment, vpc)
        if guest := self._sandboxes.own_guest(attachment):
            more = f'{more},"guest":{guest}'
        return f'{{"status":{status},{text}{more}}}'


def _row_of(
    items: Sequence[requests.BatchAttach | msgspec.Raw],
) -> list[requests.BatchAttach]:
    """As many of the first ones as ask for the same, and for nothing but VPC and kind."""
    row: list[requests.BatchAttach] = []
    for one in items:
        if (
            isinstance(one, msgspec.Raw)
            or one.address is not None
            or one.address6 is not None
            or one.slot is not None
            or one.mode is AddressMode.NATIVE
            or (row and (one.vpc != row[0].vpc or one.kind is not row[0].kind))
        ):
            break
        row.append(one)
    return row


def _as_item(answer: Answer, sandbox: str | None) -> str:
    """An answer as an item of a batch. sandbox: whom the item is about, if it says so."""
    body = answer.body.decode()
    more = f",{body[1:]}" if body else "}"
    return f'{{"status":{answer.status},"sandbox":{encode(sandbox).decode()}{more}'


class _Named(msgspec.Struct):
    sandbox: str | None = None


_named = msgspec.json.Decoder(_Named).decode


def _name_in(one: requests.BatchAttach | requests.BatchDetach | msgspec.Raw) -> str | None:
    """The sandbox that an item names, whatever else is wrong with it; None if it names none."""
    if not isinstance(one, msgspec.Raw):
        return one.sandbox
    try:
        return _named(one).sandbox
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
