# SPDX-License-Identifier: Apache-2.0
"""The API: which path and method does what, and in which words it is answered.

docs/api.md and docs/openapi.yaml describe it; tests hold the three together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from geneve_ebpf import __version__
from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import (
    Json,
    counters_json,
    drops_json,
    guest_json,
    route_json,
    sandbox_text,
    schema,
    slot_json,
    vpc_json,
    vtep_json,
)
from geneve_ebpf.agent.http import Answer, Peer, Request, error_answer
from geneve_ebpf.agent.log import Log
from geneve_ebpf.agent.pace import Pace
from geneve_ebpf.agent.service import Node, Timing
from geneve_ebpf.control.state import DesiredState
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import (
    Address,
    Attachment,
    Endpoint,
    Route,
    RouteKind,
    Vpc,
    Vtep,
    parse_address,
    parse_mac,
    parse_mtu,
    parse_name,
    parse_prefix,
    parse_vni,
)

BODY_MAX = 1 << 20
STATE_BODY_MAX = 64 << 20
Work = Callable[["Call"], "Answer | Awaitable[Answer]"]
_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What does not change while an agent runs."""

    boot: str  # "compiled" or "adopted"
    layout: str
    program: str
    mtu: int  # of a slot's eth0 at the start, bytes
    started: float  # monotonic clock, seconds


@dataclass(slots=True)
class Call:
    """A request, taken apart."""

    request: Request
    name: str  # the last part of the path, decoded; "" for a collection
    query: dict[str, str]


class Api:
    """Answers requests. `take_down` is what POST /v1/node:down does to the node."""

    def __init__(
        self,
        node: Node,
        facts: NodeFacts,
        log: Log,
        problems: Callable[[], list[str]],
        take_down: Callable[[bool], Awaitable[Json]],
    ) -> None:
        self._node = node
        self._facts = facts
        self._log = log
        self._problems = problems
        self._take_down = take_down
        self.set_mtu(facts.mtu)
        directory = _encode(str(node.pool.directory)).decode()
        self._netns_text = f"{directory[:-1]}/slot-"
        # (collection, has a name) -> method -> (work, query keys)
        self._paths: dict[tuple[str, bool], dict[str, tuple[Work, frozenset[str]]]] = {}
        for path, methods in self._table().items():
            collection, named = path.removesuffix("/{name}"), path.endswith("/{name}")
            self._paths[collection, named] = {
                method: (work, frozenset(keys)) for method, (work, *keys) in methods.items()
            }

    def set_mtu(self, mtu: int) -> None:
        """The slots' MTU from now on, in bytes: an uplink's has changed."""
        self._mtu = mtu
        self._guest = guest_json(self._node.settings.guest, mtu)
        self._guest_text = _encode(self._guest).decode()

    def _table(self) -> dict[str, dict[str, tuple[Any, ...]]]:
        """Every path: method -> (work, then the query keys it takes)."""
        return {
            "/v1/sandboxes": {"GET": (self._list_sandboxes,)},
            "/v1/sandboxes:batch": {"POST": (self._batch,)},
            "/v1/sandboxes/{name}": {
                "PUT": (self._put_sandbox,),
                "GET": (self._get_sandbox,),
                "DELETE": (self._delete_sandbox, "generation"),
            },
            "/v1/slots": {"GET": (self._list_slots,)},
            "/v1/slots:reserve": {"POST": (self._reserve,)},
            "/v1/slots/{name}": {"DELETE": (self._release,)},
            "/v1/vpcs": {"GET": (self._list_vpcs,), "POST": (self._post_vpc,)},
            "/v1/vpcs/{name}": {
                "PUT": (self._put_vpc,),
                "GET": (self._get_vpc,),
                "DELETE": (self._delete_vpc,),
            },
            "/v1/vteps": {"GET": (self._list_vteps,)},
            "/v1/vteps/{name}": {"PUT": (self._put_vtep,), "DELETE": (self._delete_vtep,)},
            "/v1/routes": {
                "GET": (self._list_routes, "vpc", "address"),
                "POST": (self._post_route,),
                "PUT": (self._put_route,),
                "DELETE": (self._delete_route, "vpc", "prefix"),
            },
            "/v1/state": {"GET": (self._get_state,), "PUT": (self._put_state,)},
            "/v1/node": {"GET": (self._get_node,)},
            "/v1/node:down": {"POST": (self._down,)},
            "/v1/drops": {"GET": (self._get_drops,)},
            "/v1/version": {"GET": (self._get_version,)},
            "/healthz": {"GET": (self._healthz,)},
            "/readyz": {"GET": (self._readyz,)},
        }

    # From the socket

    def body_limit(self, target: bytes) -> int:
        """Bytes that a request's body may have."""
        return STATE_BODY_MAX if target.startswith(b"/v1/state") else BODY_MAX

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer a request; never raises."""
        # The hot path first, in as few steps as possible.
        target = request.target
        if (
            request.method == "PUT"
            and target.startswith("/v1/sandboxes/")
            and "%" not in target
            and "?" not in target
            and "/" not in target[14:]
        ):
            return self._attach(request, target[14:])
        try:
            answer = self._dispatch(request)
        except BaseException as error:
            return self._failure(request, error)
        if isinstance(answer, Answer):
            if not answer.logged:
                self._log_change(request, answer.status)
            return answer
        return self._wait(request, answer)

    async def _wait(self, request: Request, work: Awaitable[Answer]) -> Answer:
        try:
            answer = await work
        except BaseException as error:
            return self._failure(request, error)
        self._log_change(request, answer.status)
        return answer

    def _dispatch(self, request: Request) -> Answer | Awaitable[Answer]:
        path, _, query = request.target.partition("?")
        collection, name = path, ""
        methods = self._paths.get((path, False))
        if methods is None:
            collection, _, last = path.rpartition("/")
            methods = self._paths.get((collection, True))
            if methods is None or not last:
                raise GeneveError(
                    Code.PATH_UNKNOWN, f"no such path: {path[:100]}", hint="docs/api.md lists them"
                )
            name = _decoded(last)
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            allowed = sorted(methods) + (["HEAD"] if "GET" in methods else [])
            raise GeneveError(
                Code.METHOD_NOT_ALLOWED,
                f"{path[:100]} does not take {method}",
                hint=f"it takes {', '.join(allowed)}",
                details={"allow": allowed},
            )
        work, keys = methods[method]
        call = Call(request, name, _query(query, keys))
        if method in ("GET", "DELETE"):
            _no_body(request.body)
        return work(call)

    def _failure(self, request: Request, error: BaseException) -> Answer:
        """The answer to a request that raised; a defect is logged whole."""
        peer = request.peer
        if not isinstance(error, GeneveError):
            if isinstance(error, asyncio.CancelledError):
                raise error
            self._log.defect(
                "defect", error, method=request.method, target=request.target[:200],
                uid=peer.uid, pid=peer.pid,
            )  # fmt: skip
            error = GeneveError(
                Code.INTERNAL, "the agent has a defect", hint="its log has the traceback"
            )
        self._log_change(request, error.code.value.status, error)
        head = b""
        if error.code is Code.METHOD_NOT_ALLOWED:
            allowed = error.details["allow"]
            assert isinstance(allowed, list)
            head = f"Allow: {', '.join(allowed)}\r\n".encode()
        elif error.code in (Code.BUSY, Code.NO_SLOT):
            head = b"Retry-After: 1\r\n"
        return error_answer(error, head)

    def _log_change(self, request: Request, status: int, error: GeneveError | None = None) -> None:
        if request.method in ("GET", "HEAD"):
            return
        peer = request.peer
        why = {} if error is None else {"code": error.code.slug, "message": error.message}
        self._log.change(
            "change",
            method=request.method,
            target=request.target[:200],
            status=status,
            uid=peer.uid,
            pid=peer.pid,
            **why,
        )

    # Sandboxes

    def _attach(self, request: Request, name: str) -> Answer:
        """PUT /v1/sandboxes/{id}, the hot path: dispatched by hand, logged after the answer."""
        try:
            body = requests.ATTACH(request.body)
            attachment, timing = self._node.attach(
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
        self._log.change(
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
        attachment, timing = self._node.attach(
            call.name, body.vpc, body.address, body.address6, body.slot, call.request.received
        )
        text = self._sandbox_text(attachment, body.vpc, timing)
        return Answer(200 if timing is None else 201, f"{{{text}}}".encode())

    def _sandbox_text(self, attachment: Attachment, vpc: str, timing: Timing | None = None) -> str:
        place = self._node.pool.place(attachment.slot)
        netns = f'{self._netns_text}{attachment.slot}"'
        text = sandbox_text(attachment, vpc, self._guest_text, netns, place.ifindex)
        if timing is None:
            return text
        return (
            f'{text},"timing_ns":{{"wait":{timing.wait},"validate":{timing.validate},'
            f'"write":{timing.write},"total":{timing.total}}}'
        )

    def _known_sandbox_text(self, attachment: Attachment) -> str:
        return self._sandbox_text(attachment, self._node.vpc_name(attachment.endpoint.vni))

    def _get_sandbox(self, call: Call) -> Answer:
        attachment = self._node.attachment(call.name)
        counters = _encode(counters_json(self._node.dataplane.counters(attachment.slot)))
        text = self._known_sandbox_text(attachment)
        return Answer(200, f'{{{text},"counters":{counters.decode()}}}'.encode())

    async def _list_sandboxes(self, call: Call) -> Answer:
        return await _listed(
            schema("sandboxes"),
            "sandboxes",
            (
                f"{{{self._known_sandbox_text(one)}}}"
                for one in self._node.attachments()
                if one in self._node  # not detached while the ones before it were written
            ),
        )

    def _delete_sandbox(self, call: Call) -> Answer:
        generation = None
        if "generation" in call.query:
            generation = _whole_number(call.query["generation"], "generation")
        return self._detach(call.request.peer, call.name, generation)

    def _detach(self, peer: Peer, name: str, generation: int | None) -> Answer:
        detached = self._node.detach(name, generation)
        if detached is None:
            return Answer(204)
        attachment, counters = detached
        self._log.change(
            "detach",
            f"sandbox={name} address={_spoken(attachment.endpoint)} slot=slot-{attachment.slot}"
            f" generation={attachment.generation} status=200 uid={peer.uid} pid={peer.pid}",
        )
        return Answer(
            200,
            _encode(
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
        return Answer(200, _body(schema("batch"), "results", results))

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
        attachment, timing = self._node.attach(
            item.sandbox, item.vpc, item.address, item.address6, item.slot, received
        )
        text = self._sandbox_text(attachment, item.vpc, timing)
        status = 200 if timing is None else 201
        self._log_attach(request.peer, attachment, item.vpc, status, timing)
        return Answer(status, f"{{{text}}}".encode())

    # Slots

    def _list_slots(self, call: Call) -> Answer:
        pool = self._node.pool
        return _json(
            200,
            {
                "schema": schema("slots"),
                "slots": [slot_json(pool, place) for place in pool.places()],
                "counts": pool.counts,
            },
        )

    def _reserve(self, call: Call) -> Answer:
        if call.request.body:
            requests.NOTHING(call.request.body)
        place = self._node.reserve()
        return _json(
            201,
            {
                "schema": schema("slot"),
                "slot": slot_json(self._node.pool, place),
                "guest": self._guest,
            },
        )

    def _release(self, call: Call) -> Answer:
        place = self._node.release(call.name)
        return _json(
            200,
            {
                "schema": schema("slot"),
                "slot": slot_json(self._node.pool, place),
                "guest": self._guest,
            },
        )

    # Desired state, one by one

    def _list_vpcs(self, call: Call) -> Answer:
        vpcs = sorted(self._node.desired.state.vpcs.items())
        return _json(200, {"schema": schema("vpcs"), "vpcs": [vpc_json(vpc) for _, vpc in vpcs]})

    def _get_vpc(self, call: Call) -> Answer:
        state = self._node.desired.state
        vpc = state.vpc(parse_name(call.name))
        sandboxes = len(self._node.desired.book(vpc.vni).sandboxes())
        more: Json = {"sandboxes": sandboxes, "routes": sum(1 for _ in state.routes(vpc.name))}
        return _json(200, {"schema": schema("vpc")} | vpc_json(vpc) | more)

    async def _post_vpc(self, call: Call) -> Answer:
        return await self._create_vpc(_vpc(requests.VPC_NAMED(call.request.body)))

    async def _put_vpc(self, call: Call) -> Answer:
        body = requests.VPC_SETTINGS(call.request.body)
        return await self._create_vpc(_vpc(body, name=call.name))

    async def _create_vpc(self, vpc: Vpc) -> Answer:
        created = await self._node.desired.create_vpc(vpc)
        return _json(201 if created else 200, {"schema": schema("vpc")} | vpc_json(vpc))

    async def _delete_vpc(self, call: Call) -> Answer:
        vpc = await self._node.desired.delete_vpc(parse_name(call.name))
        return _json(200, {"schema": schema("vpc")} | vpc_json(vpc))

    def _list_vteps(self, call: Call) -> Answer:
        vteps = sorted(self._node.desired.state.vteps.items())
        return _json(
            200, {"schema": schema("vteps"), "vteps": [vtep_json(vtep) for _, vtep in vteps]}
        )

    async def _put_vtep(self, call: Call) -> Answer:
        body = requests.VTEP_SETTINGS(call.request.body or b"{}")
        vtep = Vtep(parse_address(call.name), parse_mtu(body.mtu))
        created = await self._node.desired.put_vtep(vtep)
        return _json(201 if created else 200, {"schema": schema("vtep")} | vtep_json(vtep))

    async def _delete_vtep(self, call: Call) -> Answer:
        vtep = await self._node.desired.delete_vtep(parse_address(call.name))
        return _json(200, {"schema": schema("vtep")} | vtep_json(vtep))

    async def _list_routes(self, call: Call) -> Answer:
        state = self._node.desired.state
        vpc = call.query.get("vpc")
        if vpc is not None:
            state.vpc(parse_name(vpc, "vpc"))
        if "address" in call.query:
            if vpc is None:
                raise GeneveError(
                    Code.BAD_REQUEST, "an address needs its VPC", hint="add vpc=…", field="vpc"
                )
            address = parse_address(call.query["address"])
            return _json(200, self._looked_up(state, vpc, address))
        routes = list(state.routes(vpc))
        return await _listed(schema("routes"), "routes", map(_route_text, routes))

    def _looked_up(self, state: DesiredState, vpc: str, address: Address) -> Json:
        """Where a packet to the address goes: a sandbox of this node, else the longest route."""
        book = self._node.desired.book(state.vpcs[vpc].vni)
        sandbox = book.owner(address)
        route = state.match(vpc, address)
        if sandbox is None and route is None:
            raise GeneveError(
                Code.ROUTE_NOT_FOUND,
                f"VPC {vpc} has no route to {address}",
                hint=f"geneve-ebpf route list --vpc {vpc}",
                field="address",
            )
        body: Json = {"schema": schema("route")}
        if route is not None:
            body["route"] = route_json(route)
        if sandbox is not None:
            body["sandbox"] = sandbox
        return body

    async def _post_route(self, call: Call) -> Answer:
        return await self._set_route(call, replace=False)

    async def _put_route(self, call: Call) -> Answer:
        return await self._set_route(call, replace=True)

    async def _set_route(self, call: Call, *, replace: bool) -> Answer:
        route = _route(requests.ROUTE(call.request.body))
        created = await self._node.desired.put_route(route, replace=replace)
        return _json(
            201 if created else 200, {"schema": schema("route"), "route": route_json(route)}
        )

    async def _delete_route(self, call: Call) -> Answer:
        for key in ("vpc", "prefix"):
            if key not in call.query:
                raise GeneveError(
                    Code.BAD_REQUEST,
                    f"{key} is missing",
                    hint="DELETE /v1/routes?vpc=NAME&prefix=PREFIX",
                    field=key,
                )
        route = await self._node.desired.delete_route(
            parse_name(call.query["vpc"], "vpc"), parse_prefix(call.query["prefix"])
        )
        return _json(200, {"schema": schema("route"), "route": route_json(route)})

    # Desired state, all at once

    async def _get_state(self, call: Call) -> Answer:
        state = self._node.desired.state
        vpcs = [vpc_json(vpc) for _, vpc in sorted(state.vpcs.items())]
        vteps = [vtep_json(vtep) for _, vtep in sorted(state.vteps.items())]
        head = _encode(
            {
                "schema": schema("state"),
                "revision": state.revision,
                "vpcs": vpcs,
                "vteps": vteps,
            }
        )
        routes = await _encoded(map(_route_text, list(state.routes())))
        return Answer(200, b'%b,"routes":[%b]}' % (head[:-1], b",".join(routes)))

    async def _put_state(self, call: Call) -> Answer:
        body = requests.STATE(call.request.body)
        if body.schema not in (None, schema("state")):
            raise GeneveError(
                Code.BAD_REQUEST,
                f"schema {body.schema!r} is not {schema('state')}",
                hint="convert the document, or leave schema out",
                field="schema",
            )
        desired = self._node.desired
        after = DesiredState(desired.state.rules)
        difference = await desired.replace(
            after, body.revision, lambda: _steps_of_filling(after, body)
        )
        return _json(
            200,
            {
                "schema": schema("applied"),
                "revision": desired.state.revision,
                "changes": difference.counts(),
            },
        )

    # The node

    def _get_node(self, call: Call) -> Answer:
        node, facts = self._node, self._facts
        settings = node.settings
        problems = self._problems()
        return _json(
            200,
            {
                "schema": schema("node"),
                "node": settings.name,
                "state": "degraded" if problems else "ready",
                "problems": problems,
                "vtep": str(settings.vtep),
                "uplinks": list(settings.uplinks),
                "udp_port": settings.udp_port,
                "mtu": self._mtu,
                "sandboxes": node.count(),
                "slots": node.pool.counts | {"target": node.pool.target},
                "revision": node.desired.state.revision,
                "layout": facts.layout,
                "program": facts.program,
                "boot": facts.boot,
                "version": __version__,
                "uptime_s": round(time.monotonic() - facts.started, 3),
            },
        )

    async def _down(self, call: Call) -> Answer:
        force = requests.DOWN(call.request.body).force if call.request.body else False
        return _json(200, {"schema": schema("down")} | await self._take_down(force))

    def _get_drops(self, call: Call) -> Answer:
        dataplane = self._node.dataplane
        return _json(200, drops_json(dataplane.drops(), dataplane.events()))

    def _get_version(self, call: Call) -> Answer:
        facts = self._facts
        return _json(
            200,
            {
                "schema": schema("version"),
                "version": __version__,
                "api": "v1",
                "layout": facts.layout,
                "program": facts.program,
            },
        )

    def _healthz(self, call: Call) -> Answer:
        return _json(200, {"schema": schema("health"), "status": "ok"})

    def _readyz(self, call: Call) -> Answer:
        problems = self._problems()
        if problems:
            raise GeneveError(
                Code.DEGRADED, "; ".join(problems), hint="geneve-ebpf node status, the agent's log"
            )
        return _json(200, {"schema": schema("health"), "status": "ready"})


# What is in a body


def _vpc(body: requests.VpcNamed | requests.VpcSettings, where: str = "", name: str = "") -> Vpc:
    if isinstance(body, requests.VpcNamed):
        name = body.name
    return Vpc(
        parse_name(name, f"{where}name"),
        parse_vni(body.vni, f"{where}vni"),
        tuple(parse_prefix(text, f"{where}prefixes") for text in body.prefixes),
    )


def _route(body: requests.RouteBody, where: str = "") -> Route:
    try:
        kind = RouteKind(body.kind)
    except ValueError:
        raise GeneveError(
            Code.BAD_REQUEST,
            f"{body.kind!r} is no kind of route",
            hint=f"one of {', '.join(one.value for one in RouteKind)}",
            field=f"{where}kind",
        ) from None
    return Route(
        parse_name(body.vpc, f"{where}vpc"),
        parse_prefix(body.prefix, f"{where}prefix"),
        kind,
        None if body.vtep is None else parse_address(body.vtep, f"{where}vtep"),
        None if body.mac is None else parse_mac(body.mac, f"{where}mac"),
    )


def _steps_of_filling(state: DesiredState, body: requests.State) -> Iterator[None]:
    """Decode, check and add everything that a whole state lists; yields between items."""
    for number, raw in enumerate(body.vpcs):
        where = f"vpcs[{number}]"
        vpc = _vpc(requests.VPC_NAMED(raw, where), f"{where}.")
        if vpc.name in state.vpcs:
            raise _twice(f"VPC {vpc.name}", where)
        with _Within(where):
            state.check_vpc(vpc)
        state.put_vpc(vpc)
        yield
    for number, raw in enumerate(body.vteps):
        where = f"vteps[{number}]"
        item = requests.VTEP_NAMED(raw, where)
        vtep = Vtep(
            parse_address(item.address, f"{where}.address"), parse_mtu(item.mtu, f"{where}.mtu")
        )
        if vtep.address in state.vteps:
            raise _twice(f"VTEP {vtep.address}", where)
        with _Within(where):
            state.check_vtep(vtep)
        state.put_vtep(vtep)
        yield
    for number, raw in enumerate(body.routes):
        where = f"routes[{number}]"
        route = _route(requests.ROUTE(raw, where), f"{where}.")
        if state.route(route.vpc, route.prefix) is not None:
            raise _twice(f"VPC {route.vpc}'s route to {route.prefix}", where)
        with _Within(where):
            state.check_route(route)
        state.put_route(route)
        yield


class _Within:
    """Puts the place in a list before the field that an error names."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GeneveError):
            error.field = f"{self._where}.{error.field}" if error.field else self._where


def _spoken(endpoint: Endpoint) -> str:
    """Its addresses, as they stand in the log."""
    return ",".join(map(str, endpoint.addresses))


def _twice(what: str, where: str) -> GeneveError:
    return GeneveError(
        Code.BAD_REQUEST, f"{what} is listed twice", hint="list it once", field=where
    )


def _no_body(body: bytes) -> None:
    if body:
        raise GeneveError(
            Code.BAD_REQUEST, "this request takes no body", hint="send it without one"
        )


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict") if "%" in part else part
    except UnicodeDecodeError:
        raise GeneveError(
            Code.BAD_NAME,
            f"{part!r} is not UTF-8",
            hint="percent-encode UTF-8",
            field="name",
        ) from None


def _query(text: str, keys: frozenset[str]) -> dict[str, str]:
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=16
        )
    except ValueError:
        raise GeneveError(
            Code.BAD_REQUEST, "the query is not key=value&…", hint="docs/api.md"
        ) from None
    query = dict(pairs)
    for key in query:
        if key not in keys:
            takes = ", ".join(sorted(keys)) or "none"
            raise GeneveError(
                Code.BAD_REQUEST,
                f"no such query parameter: {key[:100]}",
                hint=f"this path takes {takes}",
                field=key[:100],
            )
    if len(pairs) != len(query):
        raise GeneveError(
            Code.BAD_REQUEST, "a query parameter is given twice", hint="give each once"
        )
    return query


def _whole_number(text: str, field: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    raise GeneveError(
        Code.BAD_REQUEST, f"{field} is {text[:40]!r}", hint="a whole number", field=field
    )


# What is answered


def _json(status: int, body: Json) -> Answer:
    return Answer(status, _encode(body))


def _body(schema_name: str, key: str, items: list[bytes]) -> bytes:
    return b'{"schema":"%b","%b":[%b]}' % (
        schema_name.encode(),
        key.encode(),
        b",".join(items),
    )


def _route_text(route: Route) -> str:
    """A route as JSON by hand: there are 100,000 of them, and nothing in them to escape."""
    text = f'{{"vpc":"{route.vpc}","prefix":"{route.prefix}","kind":"{route.kind.value}"'
    if route.vtep is not None:
        text += f',"vtep":"{route.vtep}"'
    if route.mac is not None:
        text += f',"mac":"{route.mac}"'
    return text + "}"


async def _encoded(texts: Iterator[str]) -> list[bytes]:
    """Texts as bytes, made in short pieces of work."""
    pace = Pace()
    items = []
    for text in texts:
        items.append(text.encode())
        await pace.breathe()
    return items


async def _listed(schema_name: str, key: str, texts: Iterator[str]) -> Answer:
    return Answer(200, _body(schema_name, key, await _encoded(texts)))
