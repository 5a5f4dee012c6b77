# SPDX-License-Identifier: Apache-2.0
"""/v1/node and what else is asked about the node: drops, version, health."""

from __future__ import annotations

import time

from geneve_ebpf import __version__
from geneve_ebpf.agent import requests
from geneve_ebpf.agent.answers import Json, drops_json, schema
from geneve_ebpf.agent.api.call import Call, Shared, Table, json_answer
from geneve_ebpf.agent.exchange import Answer
from geneve_ebpf.errors import Code, GeneveError


class NodePaths:
    """Answers for the node."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def table(self) -> Table:
        """The paths."""
        return {
            "/v1/node": {"GET": (self._get_node,)},
            "/v1/node:cordon": {"POST": (self._cordon,)},
            "/v1/node:uncordon": {"POST": (self._uncordon,)},
            "/v1/node:down": {"POST": (self._down,)},
            "/v1/drops": {"GET": (self._get_drops,)},
            "/v1/version": {"GET": (self._get_version,)},
            "/healthz": {"GET": (self._healthz,)},
            "/readyz": {"GET": (self._readyz,)},
        }

    def _get_node(self, call: Call) -> Answer:
        node, facts = self._shared.node, self._shared.facts
        settings = node.settings
        problems = self._shared.problems()
        return json_answer(
            200,
            {
                "schema": schema("node"),
                "node": settings.name,
                "state": "degraded" if problems else "ready",
                "problems": problems,
                "vtep": str(settings.vtep),
                "uplinks": list(settings.uplinks),
                "uplinks_down": node.pool.uplinks.down,
                "udp_port": settings.udp_port,
                "mtu": self._shared.mtu,
                "merging": {"mode": settings.merge} | node.pool.uplinks.merging,
                "no_relay": node.pool.uplinks.no_relay,
                "cordoned": node.intake.cordoned,
                "sandboxes": node.count(),
                "slots": node.pool.counts
                | {"target": node.pool.target, "min_ready": node.pool.min_ready},
                "kinds": node.pool.kinds,
                "waiting": self._shared.queue.admission.waiting,
                "operations": _counts(self._shared),
                "lost": [one.sandbox for one in node.lost],
                "last_event": self._shared.events.last,
                "revision": node.desired.state.revision,
                "layout": facts.layout,
                "program": facts.program,
                "boot": facts.boot,
                "version": __version__,
                "uptime_s": round(time.monotonic() - facts.started, 3),
            },
        )

    def _cordon(self, call: Call) -> Answer:
        return self._set_cordon(call, True)

    def _uncordon(self, call: Call) -> Answer:
        return self._set_cordon(call, False)

    def _set_cordon(self, call: Call, wanted: bool) -> Answer:
        if call.request.body:
            requests.NOTHING(call.request.body)
        node = self._shared.node
        changed = node.intake.cordon(wanted)
        if changed:
            self._shared.queue.refuse(node.intake.refuses)
            kind = "node-cordoned" if wanted else "node-uncordoned"
            self._shared.happened(call.request, kind, {"sandboxes": node.count(), "status": 200})
        body: Json = {
            "schema": schema("cordon"),
            "cordoned": node.intake.cordoned,
            "sandboxes": node.count(),
            "reserved": node.pool.counts["reserved"],
        }
        return json_answer(200, body, told=changed)

    async def _down(self, call: Call) -> Answer:
        force = requests.DOWN(call.request.body).force if call.request.body else False
        return json_answer(200, {"schema": schema("down")} | await self._shared.take_down(force))

    def _get_drops(self, call: Call) -> Answer:
        dataplane = self._shared.node.dataplane
        return json_answer(200, drops_json(dataplane.drops(), dataplane.events()))

    def _get_version(self, call: Call) -> Answer:
        facts = self._shared.facts
        return json_answer(
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
        return json_answer(200, {"schema": schema("health"), "status": "ok"})

    def _readyz(self, call: Call) -> Answer:
        problems = self._shared.problems()
        if problems:
            raise GeneveError(
                Code.DEGRADED, "; ".join(problems), hint="geneve-ebpf node status, the agent's log"
            )
        return json_answer(200, {"schema": schema("health"), "status": "ready"})


def _counts(shared: Shared) -> Json:
    """Operations by state."""
    return {state.value: count for state, count in shared.later.operations.counts.items()}
