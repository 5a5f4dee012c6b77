# SPDX-License-Identifier: Apache-2.0
"""What each command asks the agent, and what it prints. How it fails: test_cli_failures.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from geneve_ebpf.cli import node
from geneve_ebpf.cli.app import run
from geneve_ebpf.client import HOST_VARIABLE
from geneve_ebpf.errors import Code, Exit, GeneveError
from tests.peer import answer, peer

pytestmark = pytest.mark.usefixtures("one_process_many_commands")
TRAFFIC = {"packets": 0, "bytes": 0}
COUNTERS = {
    "tx_local": {"packets": 1, "bytes": 84},
    "tx_remote": {"packets": 2, "bytes": 168},
    "rx_local": TRAFFIC,
    "rx_remote": {"packets": 4, "bytes": 336},
}
SLOT = {
    "id": "slot-3",
    "kind": "namespace",
    "netns": "/run/x/netns/slot-3",
    "tap": None,
    "host_interface": "gnv3",
    "host_ifindex": 7,
    "state": "attached",
    "sandbox": "web",
    "attached_at": "2000-01-01T00:00:00Z",
}
FREE = {**SLOT, "id": "slot-4", "state": "ready", "sandbox": None, "attached_at": None}
GUEST = {
    "interface": "eth0",
    "address": "169.254.77.2",
    "address6": "fd67:6e76:77::2",
    "gateway6": "fe80::1",
    "gateway": "169.254.77.1",
    "mac": "02:47:56:00:00:02",
    "gateway_mac": "02:47:56:00:00:01",
    "mtu": 1450,
}
SANDBOX = {
    "schema": "geneve-ebpf/sandbox/1",
    "sandbox": "web",
    "state": "attached",
    "vpc": "blue",
    "vni": 4097,
    "address": "10.0.0.5",
    "address6": None,
    "mac": "02:47:0a:00:00:05",
    "mode": "clone",
    "guest": GUEST,
    "slot": SLOT,
    "generation": 12,
    "attached_at": "2026-01-02T03:04:05Z",
    "last_activity": None,
}
ATTACHED = {**SANDBOX, "timing_ns": {"wait": 0, "validate": 9000, "write": 8000, "total": 41_000}}
ROUTE = {"vpc": "blue", "prefix": "10.0.2.0/24", "kind": "remote", "vtep": "192.0.2.2"}
NODE = {
    "schema": "geneve-ebpf/node/1",
    "node": "default",
    "vtep": "192.0.2.1",
    "uplinks": ["eth1"],
    "uplinks_down": [],
    "udp_port": 6081,
    "mtu": 1450,
    "merging": {
        "mode": "auto",
        "device": "vxlan",
        "uplinks": ["eth1"],
        "reasons": ["GRO is off on eth2"],
    },
    "no_relay": "",
    "cordoned": False,
    "waiting": 0,
    "operations": {"pending": 0, "done": 3, "failed": 0},
    "lost": [],
    "slots": {
        "ready": 15, "reserved": 0, "attached": 1, "retiring": 0, "making": 0, "target": 16,
    },
    "last_event": 1700000000000012,
    "revision": 7,
    "layout": "0123456789abcdef",
    "program": "fedcba9876543210",
    "uptime_s": 90.0,
    "boot": "compiled",
}  # fmt: skip
DROPS = {
    "schema": "geneve-ebpf/drops/1",
    "drops": [
        {
            "reason": "no_endpoint",
            "direction": "rx",
            "class": "unreachable",
            "packets": 3,
            "bytes": 252,
            "text": "nobody there",
        },
        {
            "reason": "too_big",
            "direction": "tx",
            "class": "unreachable",
            "packets": 0,
            "bytes": 0,
            "text": "too big",
        },
    ],
    "events": [{"event": "arp_answered", "packets": 5, "text": "asked and got it"}],
}


VPC = {"vni": 4097, "prefixes": ["10.0.0.0/16"]}
ADD = ["10.0.2.0/24", "--vpc", "blue"]
REMOTE = {**ROUTE}


@pytest.mark.parametrize(
    ("words", "request_", "reply", "shown"),
    [
        (
            ["vpc", "create", "blue", "--vni", "4097", "--prefix", "10.0.0.0/16"],
            ("PUT", "/v1/vpcs/blue", VPC),
            answer("201 Created", {"name": "blue", **VPC}),
            "vpc blue created\n",
        ),
        (
            ["vpc", "create", "blue", "--vni", "1", "--prefix", "10.0.0.0/8", "--prefix",
             "192.168.0.0/24"],
            ("PUT", "/v1/vpcs/blue", {"vni": 1, "prefixes": ["10.0.0.0/8", "192.168.0.0/24"]}),
            answer("200 OK", {}),
            "vpc blue exists already\n",
        ),
        (
            ["vpc", "create", "blue", "--vni", "1", "--prefix", "10.0.0.0/8", "--prefix",
             "FD00:1:0::/48"],
            ("PUT", "/v1/vpcs/blue", {"vni": 1, "prefixes": ["10.0.0.0/8", "fd00:1::/48"]}),
            answer("200 OK", {}),
            "vpc blue exists already\n",
        ),
        (
            ["attach", "web", "--vpc", "blue", "--ip", "FD00::5", "--ip", "10.0.0.5"],
            ("PUT", "/v1/sandboxes/web",
             {"vpc": "blue", "address": "10.0.0.5", "address6": "fd00::5"}),
            answer("200 OK", {**SANDBOX, "address6": "fd00::5"}),
            "web attached already: 10.0.0.5,fd00::5 in vpc blue on slot-3,"
            " netns /run/x/netns/slot-3\n",
        ),
        (
            ["vtep", "add", "2001:DB8::2", "--mtu", "0"],
            ("PUT", "/v1/vteps/2001:db8::2", {"mtu": 0}),
            answer("201 Created", {}),
            "vtep 2001:DB8::2 added\n",
        ),
        (
            ["route", "add", "fd00:0:1::/48", "--vpc", "blue", "--via", "2001:db8::2"],
            ("POST", "/v1/routes", {"vpc": "blue", "prefix": "fd00:0:1::/48", "kind": "remote",
                                    "vtep": "2001:db8::2"}),
            answer("201 Created", {}),
            "route fd00:0:1::/48 added\n",
        ),
        (
            ["vpc", "list"],
            ("GET", "/v1/vpcs", None),
            answer("200 OK", {"vpcs": [{"name": "blue", **VPC, "sandboxes": 12}]}),
            "NAME   VNI  SANDBOXES  PREFIXES\nblue  4097         12  10.0.0.0/16\n",
        ),
        (
            ["vpc", "show", "blue"],
            ("GET", "/v1/vpcs/blue", None),
            answer("200 OK", {"schema": "x", "name": "blue", **VPC}),
            "name      blue\nvni       4097\nprefixes  10.0.0.0/16\n",
        ),
        (
            ["vpc", "delete", "blue"],
            ("DELETE", "/v1/vpcs/blue", None),
            answer("200 OK", {}),
            "vpc blue deleted\n",
        ),
        (
            ["vtep", "add", "192.0.2.2", "--mtu", "1500"],
            ("PUT", "/v1/vteps/192.0.2.2", {"mtu": 1500}),
            answer("201 Created", {}),
            "vtep 192.0.2.2 added\n",
        ),
        (
            ["vtep", "list"],
            ("GET", "/v1/vteps", None),
            answer(
                "200 OK",
                {
                    "vteps": [
                        {"address": "192.0.2.2", "mtu": 0, "path_mtu": None},
                        {
                            "address": "192.0.2.3",
                            "mtu": 1500,
                            "path_mtu": {"mtu": 1400, "expires_in": 540},
                        },
                    ]
                },
            ),
            "ADDRESS    MTU      PATH MTU\n"
            "192.0.2.2  route's  -\n"
            "192.0.2.3  1500     1400 for 540 s\n",
        ),
        (
            ["vtep", "delete", "192.0.2.2"],
            ("DELETE", "/v1/vteps/192.0.2.2", None),
            answer("200 OK", {}),
            "vtep 192.0.2.2 deleted\n",
        ),
        (
            ["route", "add", *ADD, "--via", "192.0.2.2"],
            ("POST", "/v1/routes", REMOTE),
            answer("201 Created", {}),
            "route 10.0.2.0/24 added\n",
        ),
        (
            ["route", "add", *ADD, "--via", "192.0.2.2", "--mac", "02:AA:00:00:00:01"],
            ("POST", "/v1/routes", {**REMOTE, "mac": "02:aa:00:00:00:01"}),
            answer("200 OK", {}),
            "route 10.0.2.0/24 exists already\n",
        ),
        (
            ["route", "replace", *ADD, "--local"],
            ("PUT", "/v1/routes", {"vpc": "blue", "prefix": "10.0.2.0/24", "kind": "local"}),
            answer("200 OK", {}),
            "route 10.0.2.0/24 set\n",
        ),
        (
            ["route", "add", *ADD, "--blackhole"],
            ("POST", "/v1/routes", {"vpc": "blue", "prefix": "10.0.2.0/24", "kind": "blackhole"}),
            answer("201 Created", {}),
            "route 10.0.2.0/24 added\n",
        ),
        (
            ["route", "delete", *ADD],
            ("DELETE", "/v1/routes?vpc=blue&prefix=10.0.2.0/24", None),
            answer("200 OK", {}),
            "route 10.0.2.0/24 deleted\n",
        ),
        (
            ["route", "list", "--vpc", "blue"],
            ("GET", "/v1/routes?vpc=blue", None),
            answer("200 OK", {"routes": [ROUTE]}),
            "VPC   PREFIX       KIND    VTEP       MAC\n"
            "blue  10.0.2.0/24  remote  192.0.2.2  -\n",
        ),
        (
            ["route", "get", "10.0.2.9", "--vpc", "blue"],
            ("GET", "/v1/routes?vpc=blue&address=10.0.2.9", None),
            answer("200 OK", {"route": ROUTE}),
            "10.0.2.9 in 10.0.2.0/24 remote via 192.0.2.2\n",
        ),
        (
            ["route", "get", "10.0.0.5", "--vpc", "blue"],
            ("GET", "/v1/routes?vpc=blue&address=10.0.0.5", None),
            answer("200 OK", {"sandbox": "web"}),
            "10.0.0.5 is sandbox web on this node\n",
        ),
        (
            ["slot", "reserve"],
            ("POST", "/v1/slots:reserve", {}),
            answer("201 Created", {"slot": SLOT, "guest": GUEST}),
            "slot-3  /run/x/netns/slot-3\n",
        ),
        (
            ["slot", "list"],
            ("GET", "/v1/slots", None),
            answer("200 OK", {"slots": [FREE], "counts": {}}),
            "SLOT    KIND       STATE  SANDBOX  AGE  INTERFACE  TAP  NETNS\n"
            "slot-4  namespace  ready  -        -    gnv3       -    /run/x/netns/slot-3\n",
        ),
        (
            ["slot", "reserve", "--kind", "tap"],
            ("POST", "/v1/slots:reserve", {"kind": "tap"}),
            answer("201 Created", {"slot": {**SLOT, "kind": "tap", "tap": "tap0"}}),
            "slot-3  /run/x/netns/slot-3  tap0\n",
        ),
        (
            ["slot", "reserve", "--kind", "host-tap"],
            ("POST", "/v1/slots:reserve", {"kind": "host-tap"}),
            answer("201 Created", {"slot": {**SLOT, "netns": None, "tap": "gnv3"}}),
            "slot-3  gnv3\n",
        ),
        (
            ["slot", "release", "slot-3"],
            ("DELETE", "/v1/slots/slot-3", None),
            answer("200 OK", {}),
            "slot-3 released\n",
        ),
        (
            ["attach", "web", "--vpc", "blue"],
            ("PUT", "/v1/sandboxes/web", {"vpc": "blue"}),
            answer("201 Created", ATTACHED),
            "web attached in 41 us: 10.0.0.5 in vpc blue on slot-3, netns /run/x/netns/slot-3\n",
        ),
        (
            ["attach", "web", "--vpc", "blue", "--address", "10.0.0.5", "--slot", "slot-3"],
            ("PUT", "/v1/sandboxes/web", {"vpc": "blue", "address": "10.0.0.5", "slot": "slot-3"}),
            answer("200 OK", SANDBOX),
            "web attached already: 10.0.0.5 in vpc blue on slot-3, netns /run/x/netns/slot-3\n",
        ),
        (
            ["detach", "web", "--generation", "12"],
            ("DELETE", "/v1/sandboxes/web?generation=12", None),
            answer("200 OK", {"sandbox": "web", "generation": 12, "counters": COUNTERS}),
            "web detached: sent 3 packets, received 4\n",
        ),
        (
            ["drops"],
            ("GET", "/v1/drops", None),
            answer("200 OK", DROPS),
            "REASON       DIRECTION  CLASS        PACKETS  BYTES  WHAT IT MEANS\n"
            "no_endpoint  rx         unreachable        3    252  nobody there\n"
            "\n"
            "NOT DROPPED   PACKETS  WHAT IT MEANS\n"
            "arp_answered        5  asked and got it\n",
        ),
        (
            ["node", "down", "--force"],
            ("POST", "/v1/node:down", {"force": True}),
            answer("200 OK", {}),
            "node is down\n",
        ),
        (
            ["export"],
            ("GET", "/v1/state", None),
            answer("200 OK", {"revision": 3, "vpcs": []}),
            '{\n  "revision": 3,\n  "vpcs": []\n}\n',
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_command_asks_once_and_prints_the_answer(ask, words, request_, reply, shown):
    """The request is the API's, the text is for people, and -j prints the answer as it came."""
    assert ask(words, reply) == (0, shown, "", [request_])

    status, out, err, requests = ask([*words, "-j"], reply)
    body = reply.partition(b"\r\n\r\n")[2]
    assert (status, err, requests) == (0, "", [request_])
    assert json.loads(out) == json.loads(body)
    assert out.count("\n") == 1


@pytest.mark.parametrize(("known", "mtu"), [([], 0), ([("192.0.2.2", 1400)], 1400)])
def test_a_vtep_that_is_added_again_keeps_its_mtu(tmp_path, monkeypatch, known, mtu):
    """Only --mtu changes it, --mtu 0 back to the route's."""
    vteps = [{"address": address, "mtu": size, "path_mtu": None} for address, size in known]
    with peer(tmp_path, [answer("200 OK", {"vteps": vteps}), answer("200 OK", {})]) as served:
        monkeypatch.setenv(HOST_VARIABLE, f"unix://{served.path}")
        status = run(["vtep", "add", "192.0.2.2"])

    assert status == 0
    looked, put = served.received
    assert looked.startswith(b"GET /v1/vteps ")
    assert put.startswith(b"PUT /v1/vteps/192.0.2.2 ")
    assert json.loads(put.partition(b"\r\n\r\n")[2]) == {"mtu": mtu}


@pytest.mark.parametrize(
    "words", [["-j", "vpc", "list"], ["vpc", "--json", "list"], ["vpc", "list", "-j"]]
)
def test_json_may_be_asked_for_anywhere(ask, words):
    """Before the noun, before the verb, after it."""
    _, out, _, _ = ask(words, answer("200 OK", {"schema": "s", "vpcs": []}))

    assert json.loads(out) == {"schema": "s", "vpcs": []}


def test_list_shows_every_sandbox(ask):
    """One line each; how long it has been there instead of a date."""
    _, out, _, requests = ask(["list"], answer("200 OK", {"sandboxes": [SANDBOX]}))

    header, line = out.splitlines()
    assert header.split() == [
        "SANDBOX", "VPC", "ADDRESS", "ADDRESS6", "SLOT", "KIND", "INTERFACE", "GENERATION",
        "AGE", "IDLE",
    ]  # fmt: skip
    assert line.split()[:-2] == [
        "web", "blue", "10.0.0.5", "-", "slot-3", "namespace", "gnv3", "12",
    ]  # fmt: skip
    assert line.split()[-2].endswith("d")
    assert line.split()[-1] == "-"
    assert requests == [("GET", "/v1/sandboxes", None)]


def test_show_tells_all_about_a_sandbox(ask):
    """Identity, place, what it sees of itself, and its counters."""
    _, out, _, _ = ask(["show", "web"], answer("200 OK", {**SANDBOX, "counters": COUNTERS}))

    for text in ("blue (VNI 4097)", "10.0.0.5", "slot-3", "gnv3 (ifindex 7)", "MTU 1450"):
        assert text in out
    assert "tx remote        2    168" in out


def test_detach_of_the_absent_is_no_failure(ask):
    """It is what was asked for, so exit 0; a person gets a note, a program gets JSON."""
    status, out, err, _ = ask(["detach", "web"], answer("204 No Content"))
    assert (status, out, err) == (0, "", "note: web is not attached\n")

    status, out, err, _ = ask(["-j", "detach", "web"], answer("204 No Content"))
    assert status == 0
    assert json.loads(out) == {
        "schema": "geneve-ebpf/detached/1", "sandbox": "web", "generation": None, "counters": None,
    }  # fmt: skip


def test_a_ready_node_is_shown_with_exit_0(ask):
    """Readiness is asked first, then the facts."""
    reply = {"schema": "geneve-ebpf/ready/1", "ready": True}
    both = (answer("200 OK", reply, "Connection: close"), answer("200 OK", NODE))
    status, out, err, requests = ask(["node", "status"], *both)

    assert (status, err) == (0, "")
    assert [path for _, path, _ in requests] == ["/readyz", "/v1/node"]
    assert "15 ready, 1 attached (keeps 16 ready)" in out
    assert "192.0.2.1 port 6081 over eth1" in out
    assert "on eth1, by an idle vxlan device; GRO is off on eth2" in out


def test_a_degraded_node_is_shown_and_exits_8(ask):
    """The facts are printed all the same; the reason is the error."""
    why = GeneveError(Code.DEGRADED, "the slot process died")
    both = (
        answer("503 Service Unavailable", why.as_json(), "Connection: close"),
        answer("200 OK", NODE),
    )
    status, out, err, _ = ask(["node", "status"], *both)

    assert status == Exit.DEGRADED.value
    assert "no: the slot process died" in out
    assert "degraded" in err


def test_version_works_without_an_agent(ask, monkeypatch, capsys, tmp_path):
    """Ours always; the agent's if one answers. Neither is a failure."""
    _, out, _, _ = ask(["version", "-j"], answer("200 OK", {"schema": "s", "version": "9.9"}))
    assert json.loads(out)["agent"] == {"version": "9.9"}

    monkeypatch.setenv(HOST_VARIABLE, f"unix://{tmp_path}/none.sock")
    assert run(["version"]) == 0
    assert "none (agent_unreachable)" in capsys.readouterr().out


def test_host_option_wins_over_the_environment(ask, monkeypatch, capsys, tmp_path):
    """-H names another agent for one command."""
    with peer(tmp_path, [answer("200 OK", {"vpcs": []})]) as served:
        monkeypatch.setenv(HOST_VARIABLE, f"unix://{tmp_path}/none.sock")
        assert run(["-H", f"unix://{served.path}", "vpc", "list"]) == 0


@pytest.mark.parametrize("words", [["--help"], ["vpc", "-h"], ["attach", "--help"]])
def test_help_is_what_was_asked_for(words, capsys):
    """On stdout, exit 0."""
    assert run(words) == 0
    assert capsys.readouterr().out.startswith("Usage: geneve-ebpf")


def test_a_command_that_asks_the_agent_imports_nothing_heavy(tmp_path):
    """Starting must stay quick: none of these is needed to ask a question."""
    program = (
        "import sys\nfrom geneve_ebpf.cli.app import run\nrun(['vpc', 'list'])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    with peer(tmp_path, [answer("200 OK", {"vpcs": []})]) as served:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, HOST_VARIABLE: f"unix://{served.path}"},
            capture_output=True,
            text=True,
            check=True,
        )

    loaded = set(done.stdout.splitlines()[-1].split())
    heavy = {"pyroute2", "bcc", "scapy", "rich", "asyncio", "sqlite3", "prometheus_client"}
    assert loaded & heavy == set()


def test_slots_are_listed_by_state_and_kind(ask):
    """As text and as JSON; without either, whose each is and since when is said too."""
    reply = answer("200 OK", {"slots": [SLOT, FREE, {**FREE, "kind": "tap"}], "counts": {}})

    _, out, _, _ = ask(["slot", "list", "--state", "ready", "--kind", "namespace", "-j"], reply)
    assert json.loads(out)["slots"] == [FREE]

    _, out, _, _ = ask(["slot", "list", "--state", "attached"], reply)
    (line,) = out.splitlines()[1:]
    assert re.fullmatch(r"slot-3 +namespace +attached +web +\d+d +gnv3 +- +/run/x/.*", line)


def test_where_segments_are_merged_is_not_known_at_once():
    """An agent that has just started has not looked at its uplinks yet."""
    found = {"mode": "auto", "device": "", "uplinks": [], "reasons": []}

    assert node._merging(found) == "not known yet"
    assert node._merging({**found, "reasons": ["GRO is off on eth1"]}) == "no; GRO is off on eth1"
