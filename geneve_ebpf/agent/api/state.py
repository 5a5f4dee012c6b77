# SPDX-License-Identifier: Apache-2.0
"""/v1/state: VPCs, VTEPs and routes, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import Json, route_json, schema, vpc_json, vtep_json
from geneve_ebpf.agent.api.call import (
    Call,
    Shared,
    Table,
    encode,
    encoded,
    flag_of,
    json_answer,
)
from geneve_ebpf.agent.api.routes import route_of, route_text
from geneve_ebpf.agent.api.vpcs import vpc_of
from geneve_ebpf.agent.exchange import Answer
from geneve_ebpf.control.state import DesiredState, Difference
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Vtep, parse_address, parse_mtu

TOLD_EACH = 100  # changes of one state that are an event each
NAMED_MAX = 100  # of each kind of change, in the answer to a dry run


class StatePaths:
    """Answers for the whole of the desired state."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def table(self) -> Table:
        """The paths."""
        return {"/v1/state": {"GET": (self._get_state,), "PUT": (self._put_state, "dry_run")}}

    async def _get_state(self, call: Call) -> Answer:
        state = self._shared.node.desired.state
        vpcs = [vpc_json(vpc) for _, vpc in sorted(state.vpcs.items())]
        vteps = [vtep_json(vtep) for _, vtep in sorted(state.vteps.items())]
        head = encode(
            {
                "schema": schema("state"),
                "revision": state.revision,
                "vpcs": vpcs,
                "vteps": vteps,
            }
        )
        routes = await encoded(map(route_text, list(state.routes())))
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
        desired = self._shared.node.desired
        after = DesiredState(desired.state.rules)
        dry_run = "dry_run" in call.query and flag_of(call.query["dry_run"], "dry_run")
        difference = await desired.replace(
            after, body.revision, lambda: _steps_of_filling(after, body), dry_run=dry_run
        )
        answer: Json = {
            "schema": schema("applied"),
            "revision": desired.state.revision,
            "changes": difference.counts(),
        }
        if dry_run:
            answer["names"] = _names(difference)
        else:
            self._tell(call, difference)
        return json_answer(200, answer, told=True)

    def _tell(self, call: Call, difference: Difference) -> None:
        """One event for each change if there are few, and one for all in any case."""
        tell = partial(self._shared.happened, call.request)
        nouns: dict[str, Callable[[Any], Json]] = {
            "vpc": vpc_json,
            "vtep": vtep_json,
            "route": route_json,
        }
        counts: Json = {
            f"{noun}s_{how}": len(getattr(difference, f"{noun}s_{how}"))
            for noun in nouns
            for how in ("added", "changed", "removed")
        }
        if difference.size() <= TOLD_EACH:
            for noun, as_json in nouns.items():
                for how in ("added", "changed", "removed"):
                    for one in getattr(difference, f"{noun}s_{how}"):
                        tell(f"{noun}-{how}", as_json(one))
        revision = self._shared.node.desired.state.revision
        tell("state-applied", {"revision": revision} | counts | {"status": 200})


def _names(difference: Difference) -> Json:
    """What differs, by name; of each list its beginning, as a state may have 100,000 routes."""
    name_of: dict[str, Callable[[Any], str]] = {
        "vpcs": lambda vpc: vpc.name,
        "vteps": lambda vtep: str(vtep.address),
        "routes": lambda route: f"{route.vpc} {route.prefix}",
    }
    return {
        noun: {
            how: [name(one) for one in getattr(difference, f"{noun}_{how}")[:NAMED_MAX]]
            for how in ("added", "removed", "changed")
        }
        for noun, name in name_of.items()
    }


def _steps_of_filling(state: DesiredState, body: requests.State) -> Iterator[None]:
    """Decode, check and add everything that a whole state lists; yields between items."""
    for number, raw in enumerate(body.vpcs):
        where = f"vpcs[{number}]"
        vpc = vpc_of(requests.VPC_NAMED(raw, where), f"{where}.")
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
        route = route_of(requests.ROUTE(raw, where), f"{where}.")
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


def _twice(what: str, where: str) -> GeneveError:
    return GeneveError(
        Code.BAD_REQUEST, f"{what} is listed twice", hint="list it once", field=where
    )
