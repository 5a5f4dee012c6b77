# SPDX-License-Identifier: Apache-2.0
"""/v1/vpcs and /v1/vteps: the networks, and the nodes that they reach."""

from __future__ import annotations

from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import Json, known_vtep_json, schema, vpc_json, vtep_json
from geneve_ebpf.agent.api.call import Call, Shared, Table, json_answer
from geneve_ebpf.agent.desired import Outcome
from geneve_ebpf.agent.exchange import Answer
from geneve_ebpf.model import (
    Vpc,
    Vtep,
    parse_address,
    parse_mtu,
    parse_name,
    parse_prefix,
    parse_vni,
)


class VpcPaths:
    """Answers for VPCs and VTEPs."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/vpcs": {"GET": (self._list_vpcs,), "POST": (self._post_vpc,)},
            "/v1/vpcs/{name}": {
                "PUT": (self._put_vpc,),
                "GET": (self._get_vpc,),
                "DELETE": (self._delete_vpc,),
            },
            "/v1/vteps": {"GET": (self._list_vteps,)},
            "/v1/vteps/{name}": {"PUT": (self._put_vtep,), "DELETE": (self._delete_vtep,)},
        }

    def _list_vpcs(self, call: Call) -> Answer:
        vpcs = sorted(self._shared.node.desired.state.vpcs.items())
        listed = [vpc_json(vpc) | {"sandboxes": self._sandboxes(vpc)} for _, vpc in vpcs]
        return json_answer(200, {"schema": schema("vpcs"), "vpcs": listed})

    def _get_vpc(self, call: Call) -> Answer:
        state = self._shared.node.desired.state
        vpc = state.vpc(parse_name(call.name))
        routes = sum(1 for _ in state.routes(vpc.name))
        more: Json = {"sandboxes": self._sandboxes(vpc), "routes": routes}
        return json_answer(200, {"schema": schema("vpc")} | vpc_json(vpc) | more)

    def _sandboxes(self, vpc: Vpc) -> int:
        """How many are attached."""
        return len(self._shared.node.desired.book(vpc.vni).sandboxes())

    async def _post_vpc(self, call: Call) -> Answer:
        return await self._create_vpc(call, vpc_of(requests.VPC_NAMED(call.request.body)))

    async def _put_vpc(self, call: Call) -> Answer:
        body = requests.VPC_SETTINGS(call.request.body)
        return await self._create_vpc(call, vpc_of(body, name=call.name))

    async def _create_vpc(self, call: Call, vpc: Vpc) -> Answer:
        created = await self._shared.node.desired.create_vpc(vpc)
        if created:
            self._shared.happened(call.request, "vpc-added", vpc_json(vpc) | {"status": 201})
        return json_answer(
            201 if created else 200, {"schema": schema("vpc")} | vpc_json(vpc), told=created
        )

    async def _delete_vpc(self, call: Call) -> Answer:
        vpc = await self._shared.node.desired.delete_vpc(parse_name(call.name))
        self._shared.happened(call.request, "vpc-removed", vpc_json(vpc) | {"status": 200})
        return json_answer(200, {"schema": schema("vpc")} | vpc_json(vpc), told=True)

    def _list_vteps(self, call: Call) -> Answer:
        vteps = sorted(self._shared.node.desired.state.vteps.items())
        learned = self._shared.node.dataplane.path_mtus()
        found = [known_vtep_json(vtep, learned.get(address)) for address, vtep in vteps]
        return json_answer(200, {"schema": schema("vteps"), "vteps": found})

    async def _put_vtep(self, call: Call) -> Answer:
        body = requests.VTEP_SETTINGS(call.request.body or b"{}")
        vtep = Vtep(parse_address(call.name), parse_mtu(body.mtu))
        outcome = await self._shared.node.desired.put_vtep(vtep)
        status = 201 if outcome is Outcome.ADDED else 200
        changed = outcome is not Outcome.SAME
        if changed:
            what = vtep_json(vtep) | {"status": status}
            self._shared.happened(call.request, f"vtep-{outcome.value}", what)
        return json_answer(status, {"schema": schema("vtep")} | vtep_json(vtep), told=changed)

    async def _delete_vtep(self, call: Call) -> Answer:
        vtep = await self._shared.node.desired.delete_vtep(parse_address(call.name))
        self._shared.happened(call.request, "vtep-removed", vtep_json(vtep) | {"status": 200})
        return json_answer(200, {"schema": schema("vtep")} | vtep_json(vtep), told=True)


def vpc_of(body: requests.VpcNamed | requests.VpcSettings, where: str = "", name: str = "") -> Vpc:
    if isinstance(body, requests.VpcNamed):
        name = body.name
    return Vpc(
        parse_name(name, f"{where}name"),
        parse_vni(body.vni, f"{where}vni"),
        tuple(parse_prefix(text, f"{where}prefixes") for text in body.prefixes),
    )
