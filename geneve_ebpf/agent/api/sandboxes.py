# SPDX-License-Identifier: Apache-2.0
"""/v1/sandboxes: attaching, detaching, and what is attached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import (
    Json,
    counters_json,
    rfc3339,
    sandbox_text,
    schema,
    verified_json,
)
from geneve_ebpf.agent.api.call import (
    Call,
    Failure,
    Shared,
    Table,
    encode,
    json_answer,
    listed,
    prefers_async,
    timeout_of,
    whole_number,
)
from geneve_ebpf.agent.api.operations import accepted
from geneve_ebpf.agent.events import Attached
from geneve_ebpf.agent.exchange import Answer, Patient, Peer, Request
from geneve_ebpf.agent.operations import Operation
from geneve_ebpf.agent.service import Timing
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import AddressMode, Attachment, parse_name

_SCHEMA = schema("sandbox")
ASYNC_TIMEOUT = 60.0  # seconds that an asynchronous attach may take if none are named


class SandboxPaths:
    """Answers for sandboxes. `failure` makes the answer to an item that raised."""

    def __init__(self, shared: Shared, failure: Failure) -> None:
        self._shared = shared
        self._failure = failure

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/sandboxes": {"GET": (self._list_sandboxes,)},
            "/v1/sandboxes/{name}": {
                "PUT": (self._put_sandbox,),
                "GET": (self._get_sandbox,),
                "DELETE": (self._delete_sandbox, "generation"),
            },
        }

    def attach(self, request: Request, name: str) -> Answer | Awaitable[Answer]:
        """PUT /v1/sandboxes/{id}, the hot path: dispatched by hand, logged after the answer."""
        try:
            body = requests.ATTACH(request.body)
            if body.mode is AddressMode.NATIVE:
                return self._attach_native(request, name, body)
            if request.fields:
                return self._attach_as_wished(request, name, body)
            return self._attached(request, name, body)
        except BaseException as error:
            return self._failure(request, error)

    def _put_sandbox(self, call: Call) -> Answer | Awaitable[Answer]:
        """The same, for names that needed decoding."""
        answer = self.attach(call.request, call.name)
        return answer._replace(logged=True) if isinstance(answer, Answer) else answer

    def _attach_now(
        self, request: Request, name: str, body: requests.Attach, called: bool = False
    ) -> Answer:
        """As `_attached`, with what follows: whoever waits for it may go before it is sent."""
        answer = self._attached(request, name, body, called)
        if answer.then is not None:
            answer.then()
        return answer._replace(then=None)

    def _attached(
        self, request: Request, name: str, body: requests.Attach, called: bool = False
    ) -> Answer:
        """Attach; what nobody waits for follows the answer."""
        attachment, timing = self._shared.node.attach(
            name,
            body.vpc,
            body.address,
            body.address6,
            body.slot,
            request.received,
            body.kind,
            body.mode,
            called=called,
        )
        text = self._sandbox_text(attachment, body.vpc, timing)
        if timing is not None and (body.address or body.address6):
            text += self.warnings(attachment)
        tell = partial(self.tell_attach, request, attachment, body.vpc, timing)
        then: Callable[[], object] | None = tell
        if body.verify:
            tell()  # it is attached whatever comes of looking at it
            then = None
            seen = encode(verified_json(self._shared.node.probe(attachment))).decode()
            text = f'{text},"verified":{seen}'
        return Answer(200 if timing is None else 201, f"{{{text}}}".encode(), then=then)

    def tell_attach(
        self, request: Request, attachment: Attachment, vpc: str, timing: Timing | None
    ) -> None:
        """An attach was carried out: for the log, and, unless it was attached so, as an event."""
        if timing is None:
            self._shared.log.change(
                "attach",
                f"{Attached(attachment, vpc, 200, 0).text()} uid={request.peer.uid}"
                f" pid={request.peer.pid} trace={request.trace}",
            )
        else:
            self._shared.node.record(attachment, timing)
            peer = request.peer
            content = Attached._make((attachment, vpc, 201, timing.total))
            self._shared.events.add("attach", content, request.trace, peer.uid, peer.pid)

    def warnings(self, attachment: Attachment) -> str:
        """What may surprise whoever asked for this address, as a member of the body."""
        book = self._shared.node.desired.book(attachment.endpoint.vni)
        warnings = [
            f"a {kind.value} route covers {address}: other nodes do not send its packets here"
            for address in attachment.endpoint.addresses
            if (kind := book.elsewhere(address)) is not None
        ]
        return f',"warnings":{encode(warnings).decode()}' if warnings else ""

    # Not at once

    def _attach_native(
        self, request: Request, name: str, body: requests.Attach
    ) -> Awaitable[Answer]:
        """Answered when the sandbox has its own addresses, which may be netlink's matter."""
        if prefers_async(request):
            raise GeneveError(
                Code.BAD_REQUEST,
                "a native attach cannot be answered before it is done",
                hint="leave Prefer: respond-async out",
                field="mode",
            )
        answer = self._attach_as_wished(request, name, body)
        if isinstance(answer, Answer):
            return self._settled(request, name, answer)
        return Patient(self._settled_in_turn(request, name, answer))

    async def _settled_in_turn(self, request: Request, name: str, turn: Patient) -> Answer:
        # Whose caller goes while it waits for a slot is not attached; once it is, it settles
        # or is detached, whoever waits for that.
        settling = self._settled(request, name, await turn)
        return await asyncio.shield(asyncio.ensure_future(settling))

    async def _settled(self, request: Request, name: str, answer: Answer) -> Answer:
        try:
            if answer.status < 400:
                took = await self._shared.node.settle(name, partial(self.detach, request))
                if answer.status == 201 and took is not None:
                    answer = answer._replace(body=_with_settle(answer.body, request, took))
        except BaseException as error:
            answer = self._failure(request, error)
        return answer._replace(logged=True)

    def _attach_as_wished(
        self, request: Request, name: str, body: requests.Attach
    ) -> Answer | Patient:
        """With header fields that may ask to wait for a slot, or not to wait for the attach."""
        seconds = timeout_of(request)
        if prefers_async(request):
            operation = self._shared.later.operations.submit(
                parse_name(name, "sandbox"),
                parse_name(body.vpc, "vpc"),
                body,
                timeout=ASYNC_TIMEOUT if seconds is None else seconds,
                kind=self._shared.node.pool.kind_or_default(body.kind).value,
                trace=request.trace,
                uid=request.peer.uid,
                pid=request.peer.pid,
            )
            self.start(operation)
            return accepted(operation)
        if seconds is None:
            return self._attach_now(request, name, body)
        return self._shared.with_a_slot(
            request,
            body.vpc,
            seconds,
            body.kind,
            partial(self._attach_now, request, name, body),
            self._failure,
        )

    def start(self, operation: Operation) -> None:
        """Have an operation carried out."""
        self._shared.later.start(operation, self._attempt)

    def _attempt(self, operation: Operation, called: bool) -> bytes:
        assert isinstance(operation.body, requests.Attach)
        peer = Peer(operation.pid, operation.uid, -1, frozenset())
        target = f"/v1/sandboxes/{operation.sandbox}"
        now = time.perf_counter_ns()
        request = Request("PUT", target, b"", peer, now, operation.trace)
        return self._attach_now(request, operation.sandbox, operation.body, called).body

    # What an attach is answered with

    def _sandbox_text(self, attachment: Attachment, vpc: str, timing: Timing | None = None) -> str:
        """A sandbox's body, without the braces around it."""
        guest = self.own_guest(attachment) or self._shared.guest_text
        text = f'"schema":"{_SCHEMA}",{self.own_text(attachment, vpc)},"guest":{guest}'
        if timing is None:
            return text
        return (
            f'{text},"timing_ns":{{"wait":{timing.wait},"validate":{timing.validate},'
            f'"write":{timing.write},"total":{timing.total}}}'
        )

    def own_text(self, attachment: Attachment, vpc: str) -> str:
        """What it has of its own, as members of its body."""
        return sandbox_text(attachment, self._shared.node.pool.place(attachment.slot), vpc)

    def own_guest(self, attachment: Attachment) -> str:
        """`guest` of one who sees what most do not; "" for the others."""
        given = self._shared.node.pool.place(attachment.slot).given
        own: Json = {}
        if attachment.mode is AddressMode.NATIVE:
            address, address6 = attachment.endpoint.address, attachment.endpoint.address6
            own["address"] = None if address is None else str(address)
            own["address6"] = None if address6 is None else str(address6)
        if given is not None:
            own["interface"] = given.interface
        if not own:
            return ""
        return encode(self._shared.guest | own).decode()

    def _known_sandbox_text(self, attachment: Attachment) -> str:
        return self._sandbox_text(attachment, self._shared.node.vpc_name(attachment.endpoint.vni))

    def _get_sandbox(self, call: Call) -> Answer:
        attachment = self._shared.node.attachment(call.name)
        counters, last = self._shared.node.activity.look(attachment)
        text = self._known_sandbox_text(attachment)
        numbers = encode(counters_json(counters)).decode()
        return Answer(200, f'{{{text},{_last_text(last)},"counters":{numbers}}}'.encode())

    async def _list_sandboxes(self, call: Call) -> Answer:
        return await listed(
            schema("sandboxes"),
            "sandboxes",
            (
                f"{{{self._known_sandbox_text(one)},"
                f"{_last_text(self._shared.node.activity.known(one))}}}"
                for one in self._shared.node.attachments()
                if one in self._shared.node  # not detached while the ones before it were written
            ),
        )

    def _delete_sandbox(self, call: Call) -> Answer:
        generation = None
        if "generation" in call.query:
            generation = whole_number(call.query["generation"], "generation")
        return self.detach(call.request, call.name, generation)

    def detach(self, request: Request, name: str, generation: int | None) -> Answer:
        """Detach one, and tell of it. Raises GeneveError."""
        found = self.detached(request, name, generation)
        if found is None:
            return Answer(204)
        return json_answer(200, {"schema": schema("detached")} | found, told=True)

    def detached(self, request: Request, name: str, generation: int | None) -> Json | None:
        """Detach one, and tell of it: its final counters; None if nobody of that name was."""
        detached = self._shared.node.detach(name, generation)
        if detached is None:
            return None
        attachment, counters = detached
        self._shared.happened(
            request,
            "detach",
            {
                "sandbox": name,
                "vpc": self._shared.node.vpc_name(attachment.endpoint.vni),
                "vni": attachment.endpoint.vni,
                "address": [str(address) for address in attachment.endpoint.addresses],
                "slot": f"slot-{attachment.slot}",
                "generation": attachment.generation,
                "status": 200,
            },
        )
        return {
            "sandbox": attachment.sandbox,
            "generation": attachment.generation,
            "counters": counters_json(counters),
        }


def _last_text(seconds: float | None) -> str:
    """When a sandbox was last active, as a member of its body."""
    return '"last_activity":' + ("null" if seconds is None else f'"{rfc3339(seconds)}"')


def _with_settle(body: bytes, request: Request, took: int) -> bytes:
    """A sandbox's body, with the time that its namespace took for its addresses."""
    # Once more through the codec: that is little beside netlink.
    sandbox = msgspec.json.decode(body)
    total = time.perf_counter_ns() - request.received
    sandbox["timing_ns"] |= {"settle": took, "total": total}
    return msgspec.json.encode(sandbox)
