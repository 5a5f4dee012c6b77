# SPDX-License-Identifier: Apache-2.0
"""/v1/routes: where the packets of a VPC go."""

from __future__ import annotations

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import Json, route_json, schema
from geneve_ebpf.agent.api.call import Call, Shared, Table, json_answer, listed
from geneve_ebpf.agent.desired import Outcome
from geneve_ebpf.agent.exchange import Answer
from geneve_ebpf.control.state import DesiredState
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import (
    Address,
    Route,
    RouteKind,
    parse_address,
    parse_mac,
    parse_name,
    parse_prefix,
)


class RoutePaths:
    """Answers for routes."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/routes": {
                "GET": (self._list_routes, "vpc", "address"),
                "POST": (self._post_route,),
                "PUT": (self._put_route,),
                "DELETE": (self._delete_route, "vpc", "prefix"),
            },
        }

    async def _list_routes(self, call: Call) -> Answer:
        state = self._shared.node.desired.state
        vpc = call.query.get("vpc")
        if vpc is not None:
            state.vpc(parse_name(vpc, "vpc"))
        if "address" in call.query:
            if vpc is None:
                raise GeneveError(
                    Code.BAD_REQUEST, "an address needs its VPC", hint="add vpc=…", field="vpc"
                )
            address = parse_address(call.query["address"])
            return json_answer(200, self._looked_up(state, vpc, address))
        routes = list(state.routes(vpc))
        return await listed(schema("routes"), "routes", map(route_text, routes))

    def _looked_up(self, state: DesiredState, vpc: str, address: Address) -> Json:
        """Where a packet to the address goes: a sandbox of this node, else the longest route."""
        book = self._shared.node.desired.book(state.vpcs[vpc].vni)
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
        route = route_of(requests.ROUTE(call.request.body))
        outcome = await self._shared.node.desired.put_route(route, replace=replace)
        status = 201 if outcome is Outcome.ADDED else 200
        changed = outcome is not Outcome.SAME
        if changed:
            self._tell(call, f"route-{outcome.value}", route, status)
        body: Json = {"schema": schema("route"), "route": route_json(route)}
        if route.kind is RouteKind.LOCAL and not self._touches(route):
            body["warnings"] = [
                f"{route.prefix} is outside the prefixes of VPC {route.vpc}: no sandbox can have"
                " an address there"
            ]
        return json_answer(status, body, told=changed)

    def _touches(self, route: Route) -> bool:
        """Has the route an address in common with its VPC?"""
        prefixes = self._shared.node.desired.state.vpcs[route.vpc].prefixes
        return any(
            prefix.version == route.prefix.version and prefix.overlaps(route.prefix)
            for prefix in prefixes
        )

    def _tell(self, call: Call, kind: str, route: Route, status: int) -> None:
        vni = self._shared.node.desired.state.vpcs[route.vpc].vni
        what = route_json(route) | {"vni": vni, "status": status}
        self._shared.happened(call.request, kind, what)

    async def _delete_route(self, call: Call) -> Answer:
        for key in ("vpc", "prefix"):
            if key not in call.query:
                raise GeneveError(
                    Code.BAD_REQUEST,
                    f"{key} is missing",
                    hint="DELETE /v1/routes?vpc=NAME&prefix=PREFIX",
                    field=key,
                )
        route = await self._shared.node.desired.delete_route(
            parse_name(call.query["vpc"], "vpc"), parse_prefix(call.query["prefix"])
        )
        self._tell(call, "route-removed", route, 200)
        body: Json = {"schema": schema("route"), "route": route_json(route)}
        return json_answer(200, body, told=True)


def route_of(body: requests.RouteBody, where: str = "") -> Route:
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


def route_text(route: Route) -> str:
    """A route as JSON by hand: there are 100,000 of them, and nothing in them to escape."""
    text = f'{{"vpc":"{route.vpc}","prefix":"{route.prefix}","kind":"{route.kind.value}"'
    if route.vtep is not None:
        text += f',"vtep":"{route.vtep}"'
    if route.mac is not None:
        text += f',"mac":"{route.mac}"'
    return text + "}"
