# SPDX-License-Identifier: Apache-2.0
"""/v1/sandboxes: attaching, detaching, and what is attached."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import counters_json, ipv4_text, sandbox_text, schema
from geneve_ebpf.agent.api.call import (
    Call,
    Shared,
    Table,
    encode,
    list_body,
    listed,
    whole_number,
)
from geneve_ebpf.agent.http import Answer, Peer, Request
from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.agent.service import Timing
from geneve_ebpf.model import Attachment, Endpoint

Failure = Callable[[Request, BaseException], Answer]


class Sandboxes:
    """Answers for sandboxes. `failure` makes the answer to an item that raised."""

    def __init__(self, shared: Shared, failure: Failure) -> None:
        self._shared = shared
        self._failure = failure
        directory = encode(str(shared.node.pool.directory)).decode()
        self._netns_text = f"{directory[:-1]}/slot-"

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/sandboxes": {"GET": (self._list_sandboxes,)},
            "/v1/sandboxes:batch": {"POST": (self._batch,)},
            "/v1/sandboxes/{name}": {
                "PUT": (self._put_sandbox,),
                "GET": (self._get_sandbox,),
                "DELETE": (self._delete_sandbox, "generation"),
            },
        }

    def attach(self, request: Request, name: str) -> Answer:
        """PUT /v1/sandboxes/{id}, the hot path: dispatched by hand, logged after the answer."""
        try:
            body = requests.ATTACH(request.body)
            attachment, timing = self._shared.node.attach(
                name, body.vpc, body.address, body.address6, body.slot, request.received
            )
        except BaseException as error:
            return self._failure(request, error)
        status = 200 if timing is None else 201
        text = self._sandbox_text(attachment, body.vpc, timing)
        self._log_attach(request.peer, attachment, body.vpc, status, timing)
        return Answer(status, f"{{{text}}}".encode())

    def _log_attach(
        self, peer: Peer, attachment: Attachment, vpc: str, status: int, timing: Timing | None
    ) -> None:
        # Names and addresses have been checked: there is nothing in them to quote.
        self._shared.log.change(
            "attach",
            lambda: (
                f"sandbox={attachment.sandbox} vpc={vpc}"
                f" address={_spoken(attachment.endpoint)} slot=slot-{attachment.slot}"
                f" generation={attachment.generation} status={status}"
                f" ns={0 if timing is None else timing.total} uid={peer.uid} pid={peer.pid}"
            ),
        )

    def _put_sandbox(self, call: Call) -> Answer:
        """The same, for names that needed decoding."""
        body = requests.ATTACH(call.request.body)
        attachment, timing = self._shared.node.attach(
            call.name, body.vpc, body.address, body.address6, body.slot, call.request.received
        )
        text = self._sandbox_text(attachment, body.vpc, timing)
        return Answer(200 if timing is None else 201, f"{{{text}}}".encode())

    def _sandbox_text(self, attachment: Attachment, vpc: str, timing: Timing | None = None) -> str:
        place = self._shared.node.pool.place(attachment.slot)
        netns = f'{self._netns_text}{attachment.slot}"'
        text = sandbox_text(attachment, vpc, self._shared.guest_text, netns, place.ifindex)
        if timing is None:
            return text
        return (
            f'{text},"timing_ns":{{"wait":{timing.wait},"validate":{timing.validate},'
            f'"write":{timing.write},"total":{timing.total}}}'
        )

    def _known_sandbox_text(self, attachment: Attachment) -> str:
        return self._sandbox_text(attachment, self._shared.node.vpc_name(attachment.endpoint.vni))

    def _get_sandbox(self, call: Call) -> Answer:
        attachment = self._shared.node.attachment(call.name)
        counters = encode(counters_json(self._shared.node.dataplane.counters(attachment.slot)))
        text = self._known_sandbox_text(attachment)
        return Answer(200, f'{{{text},"counters":{counters.decode()}}}'.encode())

    async def _list_sandboxes(self, call: Call) -> Answer:
        return await listed(
            schema("sandboxes"),
            "sandboxes",
            (
                f"{{{self._known_sandbox_text(one)}}}"
                for one in self._shared.node.attachments()
                if one in self._shared.node  # not detached while the ones before it were written
            ),
        )

    def _delete_sandbox(self, call: Call) -> Answer:
        generation = None
        if "generation" in call.query:
            generation = whole_number(call.query["generation"], "generation")
        return self._detach(call.request.peer, call.name, generation)

    def _detach(self, peer: Peer, name: str, generation: int | None) -> Answer:
        detached = self._shared.node.detach(name, generation)
        if detached is None:
            return Answer(204)
        attachment, counters = detached
        self._shared.log.change(
            "detach",
            f"sandbox={name} address={_spoken(attachment.endpoint)} slot=slot-{attachment.slot}"
            f" generation={attachment.generation} status=200 uid={peer.uid} pid={peer.pid}",
        )
        return Answer(
            200,
            encode(
                {
                    "schema": schema("detached"),
                    "sandbox": attachment.sandbox,
                    "generation": attachment.generation,
                    "counters": counters_json(counters),
                }
            ),
            logged=True,
        )

    async def _batch(self, call: Call) -> Answer:
        batch = requests.BATCH(call.request.body)
        results: list[bytes] = []
        pace = Pace()
        for number, raw in enumerate(batch.detach):
            where = f"detach[{number}]"
            results.append(self._batched(call.request, raw, where, self._batched_detach))
            await pace.breathe()
        for number, raw in enumerate(batch.attach):
            where = f"attach[{number}]"
            results.append(self._batched(call.request, raw, where, self._batched_attach))
            await pace.breathe()
        return Answer(200, list_body(schema("batch"), "results", results))

    def _batched(
        self,
        request: Request,
        raw: msgspec.Raw,
        where: str,
        work: Callable[[Request, msgspec.Raw, str], Answer],
    ) -> bytes:
        """One item of a batch: its answer's status and body in one object."""
        try:
            answer = work(request, raw, where)
        except BaseException as error:
            answer = self._failure(request, error)
        separator = b"," if answer.body else b"}"
        return b'{"status":%d%b%b' % (answer.status, separator, answer.body[1:])

    def _batched_detach(self, request: Request, raw: msgspec.Raw, where: str) -> Answer:
        item = requests.BATCH_DETACH(raw, where)
        return self._detach(request.peer, item.sandbox, item.generation)

    def _batched_attach(self, request: Request, raw: msgspec.Raw, where: str) -> Answer:
        # An item's time starts with the item: what was before it is not its wait.
        received = time.perf_counter_ns()
        item = requests.BATCH_ATTACH(raw, where)
        attachment, timing = self._shared.node.attach(
            item.sandbox, item.vpc, item.address, item.address6, item.slot, received
        )
        text = self._sandbox_text(attachment, item.vpc, timing)
        status = 200 if timing is None else 201
        self._log_attach(request.peer, attachment, item.vpc, status, timing)
        return Answer(status, f"{{{text}}}".encode())


def _spoken(endpoint: Endpoint) -> str:
    """Its addresses, as they stand in the log."""
    if endpoint.address is None:
        return str(endpoint.address6)
    spoken = ipv4_text(endpoint.address)
    return spoken if endpoint.address6 is None else f"{spoken},{endpoint.address6}"
