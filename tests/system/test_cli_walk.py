# SPDX-License-Identifier: Apache-2.0
"""The command as a user types it, against the real agents of two nodes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.network import Lab
from tests.command import COMMAND, as_nobody, asked, geneve, new_lab, refused
from tests.nodes import PREFIX, eventually

BLUE, RED = 4097, 4098


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes that know of each other nothing yet."""
    with new_lab("w") as lab:
        lab.up(nodes=2, slots=6)
        yield lab


@pytest.fixture
def node(lab):
    """The first node, empty of sandboxes and state before and after."""
    yield from _emptied(lab, 0)


@pytest.fixture
def other(lab):
    """The second node, likewise."""
    yield from _emptied(lab, 1)


def _emptied(lab, index):
    node = lab.nodes[index]
    yield node
    for sandbox in asked(node, "list")["sandboxes"]:
        assert geneve(node, "detach", sandbox["sandbox"]).returncode == 0
    empty = geneve(node, "apply", "-f", "-", input='{"vpcs": [], "vteps": [], "routes": []}')
    assert empty.returncode == 0, empty.stderr


def ready(node, count=6):
    """Wait until so many slots are ready again."""
    assert eventually(lambda: asked(node, "node", "status")["slots"]["ready"] >= count)


def state(node):
    """The node's state without its revision."""
    exported = asked(node, "export")
    return {kind: exported[kind] for kind in ("vpcs", "vteps", "routes")}


def test_a_sandbox_of_each_node_joins_a_vpc_and_they_ping(node, other):
    """The whole way with commands alone: VPC, VTEP, routes, attach, ping, counters, detach."""
    for here, there, local, remote in (
        (node, other, "10.0.1.0/24", "10.0.2.0/24"),
        (other, node, "10.0.2.0/24", "10.0.1.0/24"),
    ):
        for words in (
            ["vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16"],
            ["vtep", "add", there.vtep],
            ["route", "add", local, "--vpc", "blue", "--local"],
            ["route", "add", remote, "--vpc", "blue", "--via", there.vtep],
        ):
            done = geneve(here, *words)
            assert (done.returncode, done.stderr) == (0, "")

    web = geneve(node, "attach", "web", "--vpc", "blue", "--address", "10.0.1.10")
    assert re.fullmatch(
        r"web attached in \d+ us: 10\.0\.1\.10 in vpc blue on slot-\d+, netns /\S+\n", web.stdout
    )
    asked(other, "attach", "db", "--vpc", "blue", "--address", "10.0.2.10")
    ping = geneve(
        node, "netns-exec", "web", "--", "ping", "-c", "3", "-i", "0.05", "-W", "2", "10.0.2.10"
    )
    assert ping.returncode == 0, ping.stdout + ping.stderr

    counters = asked(node, "show", "web")["counters"]
    assert counters["tx_remote"] == counters["rx_remote"] == {"packets": 3, "bytes": 3 * 84}
    assert re.search(r"^web +blue +10\.0\.1\.10 +- +slot-\d+ ", geneve(node, "list").stdout, re.M)
    gone = geneve(node, "detach", "web")
    assert (gone.returncode, gone.stdout) == (0, "web detached: sent 3 packets, received 3\n")
    assert asked(node, "list")["sandboxes"] == []


def test_attach_json_has_every_field(node):
    """What a platform needs to wire its sandbox up, and how long it took."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")

    answer = asked(node, "attach", "web", "--vpc", "blue", "--address", "10.0.0.5")

    assert answer["schema"] == "geneve-ebpf/sandbox/1"
    assert answer["sandbox"] == "web"
    assert answer["state"] == "attached"
    assert (answer["vpc"], answer["vni"]) == ("blue", BLUE)
    assert answer["address"] == "10.0.0.5"
    assert answer["address6"] is None
    assert answer["generation"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", answer["attached_at"])
    assert set(answer["guest"]) == {
        "interface", "address", "address6", "gateway", "gateway6", "mac", "gateway_mac", "mtu",
    }  # fmt: skip
    assert {"id", "kind", "netns", "host_interface", "host_ifindex"} <= set(answer["slot"])
    assert answer["slot"]["kind"] == "namespace"
    assert set(answer["timing_ns"]) == {"wait", "validate", "write", "total"}
    inside = geneve(node, "netns-exec", "web", "--", "ip", "-j", "address", "show", "eth0")
    (eth0,) = json.loads(inside.stdout)
    assert eth0["mtu"] == answer["guest"]["mtu"]
    assert eth0["address"] == answer["guest"]["mac"]


def test_attaching_again_changes_nothing_and_another_attach_is_a_conflict(node):
    """Idempotent for the same settings; for others exit 4, with what differs."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    first = asked(node, "attach", "web", "--vpc", "blue", "--address", "10.0.0.5")

    again = asked(node, "attach", "web", "--vpc", "blue", "--address", "10.0.0.5")
    assert again["generation"] == first["generation"]
    assert again["slot"]["id"] == first["slot"]["id"]

    differs = ["attach", "web", "--vpc", "blue", "--address", "10.0.0.6"]
    assert refused(node, *differs) == (4, "sandbox_exists")
    assert "it has 10.0.0.5, asked for 10.0.0.6" in geneve(node, *differs).stderr
    taken = ["attach", "db", "--vpc", "blue", "--address", "10.0.0.5"]
    assert refused(node, *taken) == (4, "address_in_use")


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["attach", "a", "--vpc", "green"], 3, "vpc_not_found"),
        (["attach", "a", "--vpc", "blue", "--address", "10.9.0.1"], 2, "address_outside_vpc"),
        (["attach", "a", "--vpc", "blue", "--address", "10.0.0.1"], 2, "address_reserved"),
        (["attach", "a", "--vpc", "blue", "--address", "10.0.255.255"], 2, "address_reserved"),
        (["attach", "a", "--vpc", "blue", "--slot", "slot-999"], 3, "slot_not_found"),
        (["attach", "../a", "--vpc", "blue"], 2, "bad_name"),
        (["show", "a"], 3, "sandbox_not_found"),
        (["netns-exec", "a", "--", "true"], 3, "sandbox_not_found"),
        (["vpc", "show", "green"], 3, "vpc_not_found"),
        (["vpc", "delete", "green"], 3, "vpc_not_found"),
        (["vpc", "create", "red", "--vni", BLUE, "--prefix", "10.1.0.0/16"], 4, "vni_taken"),
        (["vpc", "create", "blue", "--vni", RED, "--prefix", "10.0.0.0/16"], 4, "vpc_exists"),
        (
            ["vpc", "create", "red", "--vni", RED, "--prefix", "169.254.0.0/16"],
            2,
            "prefix_overlaps_guest",
        ),
        (["vtep", "delete", "192.0.2.200"], 3, "vtep_not_found"),
        (["route", "delete", "10.0.9.0/24", "--vpc", "blue"], 3, "route_not_found"),
        (["route", "get", "10.0.9.1", "--vpc", "blue"], 3, "route_not_found"),
        (
            ["route", "add", "10.0.9.0/24", "--vpc", "blue", "--via", "192.0.2.200"],
            3,
            "vtep_not_found",
        ),
        (["slot", "release", "slot-999"], 3, "slot_not_found"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_has_a_code_and_leaves_nothing_half_made(node, words, status, code):
    """One line, its own exit status, and a state that is what it was."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    before = state(node)

    assert refused(node, *words) == (status, code)

    assert state(node) == before
    assert asked(node, "list")["sandboxes"] == []


def test_a_slot_is_reserved_first_and_bound_later(node):
    """The namespace is handed out before the VPC is known, and stays the same one."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    reserved = asked(node, "slot", "reserve")
    slot = reserved["slot"]["id"]
    assert reserved["guest"]["interface"] == "eth0"
    listed = {item["id"]: item["state"] for item in asked(node, "slot", "list")["slots"]}
    assert listed[slot] == "reserved"

    attached = asked(node, "attach", "web", "--vpc", "blue", "--slot", slot)

    assert attached["slot"]["netns"] == reserved["slot"]["netns"]
    assert refused(node, "slot", "release", slot) == (4, "slot_taken")
    assert refused(node, "attach", "db", "--vpc", "blue", "--slot", slot) == (4, "slot_taken")
    for words in (["slot", "release", slot], ["attach", "db", "--vpc", "blue", "--slot", slot]):
        assert f"{slot} is sandbox web's" in geneve(node, *words).stderr
    (listed,) = asked(node, "slot", "list", "--state", "attached")["slots"]
    assert (listed["id"], listed["sandbox"]) == (slot, "web")
    assert listed["attached_at"] == attached["attached_at"]


def test_a_reserved_slot_can_be_given_back(node):
    """It is destroyed, never handed out again, and another one made."""
    ready(node)
    slot = asked(node, "slot", "reserve")["slot"]

    assert geneve(node, "slot", "release", slot["id"]).stdout == f"{slot['id']} released\n"

    ready(node)


def test_detach_of_the_absent_and_of_another_generation(node):
    """The absent is a note and exit 0; a newer attachment is left alone with exit 4."""
    absent = geneve(node, "detach", "nobody")
    assert (absent.returncode, absent.stdout) == (0, "")
    assert absent.stderr == "note: nobody is not attached\n"

    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    generation = asked(node, "attach", "web", "--vpc", "blue")["generation"]
    wrong = ["detach", "web", "--generation", generation + 1]
    assert refused(node, *wrong) == (4, "generation_mismatch")
    assert asked(node, "detach", "web", "--generation", generation)["generation"] == generation


def test_two_attaches_racing_for_one_name(node):
    """One of them gets it, the other one is told so; nobody gets half of it."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    processes = [
        subprocess.Popen(
            [COMMAND, "attach", "web", "--vpc", "blue", "--address", f"10.0.0.{n}"],
            env=node.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in (5, 6)
    ]
    for process in processes:
        process.communicate(timeout=30)

    assert sorted(process.returncode for process in processes) == [0, 4]
    (sandbox,) = asked(node, "list")["sandboxes"]
    winner = next(n for n, p in zip((5, 6), processes, strict=True) if p.returncode == 0)
    assert sandbox["address"] == f"10.0.0.{winner}"


def test_vpcs_vteps_and_routes_one_by_one(node):
    """Made, listed, looked up, replaced, refused while in use, deleted."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    geneve(node, "vtep", "add", "192.0.2.9", "--mtu", "1400")
    add = ["route", "add", "10.0.2.0/24", "--vpc", "blue", "--via", "192.0.2.9"]
    assert geneve(node, *add).stdout == "route 10.0.2.0/24 added\n"
    assert geneve(node, *add).stdout == "route 10.0.2.0/24 exists already\n"
    blackhole = ["10.0.2.0/24", "--vpc", "blue", "--blackhole"]
    assert refused(node, "route", "add", *blackhole) == (4, "route_exists")
    assert refused(node, "vtep", "delete", "192.0.2.9") == (4, "vtep_in_use")
    assert refused(node, "vpc", "delete", "blue") == (4, "vpc_in_use")
    found = geneve(node, "route", "get", "10.0.2.77", "--vpc", "blue").stdout
    assert found == "10.0.2.77 in 10.0.2.0/24 remote via 192.0.2.9\n"
    assert asked(node, "vtep", "list")["vteps"] == [
        {"address": "192.0.2.9", "mtu": 1400, "path_mtu": None}
    ]

    assert geneve(node, "route", "replace", *blackhole).returncode == 0
    (route,) = asked(node, "route", "list", "--vpc", "blue")["routes"]
    assert route["kind"] == "blackhole"
    for words in (
        ["route", "delete", "10.0.2.0/24", "--vpc", "blue"],
        ["vtep", "delete", "192.0.2.9"],
        ["vpc", "delete", "blue"],
    ):
        assert geneve(node, *words).returncode == 0
    assert state(node) == {"vpcs": [], "vteps": [], "routes": []}


TOML = """
[[vpcs]]
name = "blue"
vni = 4097
prefixes = ["10.0.0.0/16"]

[[vteps]]
address = "192.0.2.9"
mtu = 1450

[[routes]]
vpc = "blue"
prefix = "10.0.2.0/24"
kind = "remote"
vtep = "192.0.2.9"
mac = "02:00:00:00:00:07"
"""


def test_apply_makes_the_state_that_of_the_file_and_export_prints_it(node, tmp_path):
    """TOML in, JSON out, JSON in again: no change; an empty set removes all."""
    file = tmp_path / "state.toml"
    file.write_text(TOML)

    applied = geneve(node, "apply", "-f", file)
    assert applied.returncode == 0, applied.stderr
    assert "vpcs        1        0        0" in applied.stdout

    exported = geneve(node, "export").stdout
    assert json.loads(exported)["routes"] == [
        {
            "vpc": "blue",
            "prefix": "10.0.2.0/24",
            "kind": "remote",
            "vtep": "192.0.2.9",
            "mac": "02:00:00:00:00:07",
        }
    ]
    again = geneve(node, "apply", "-f", "-", "-j", input=exported)
    assert all(
        not any(kind.values()) for kind in json.loads(again.stdout)["changes"].values()
    ), again.stdout


def test_a_dry_run_says_what_would_change_and_changes_nothing(node):
    """By name, with a sign; the state and its revision stay."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    before = asked(node, "export")
    wanted = (
        '{"vpcs": [{"name": "red", "vni": 4098, "prefixes": ["10.9.0.0/16"]}],'
        ' "routes": [{"vpc": "red", "prefix": "10.9.1.0/24", "kind": "local"}]}'
    )

    done = geneve(node, "apply", "--dry-run", "-f", "-", input=wanted)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[4:] == [
        "+ vpc red",
        "- vpc blue",
        "+ route red 10.9.1.0/24",
        f"nothing was changed: revision {before['revision']}",
    ]
    assert asked(node, "export") == before


def test_a_local_route_where_no_sandbox_can_be_is_warned_of(node):
    """On stderr, and it is added: the VPC may get that prefix yet."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")

    inside, outside = (
        geneve(node, "route", "add", prefix, "--vpc", "blue", "--local")
        for prefix in ("10.0.1.0/24", "10.1.1.0/24")
    )

    assert (inside.returncode, inside.stderr, outside.returncode) == (0, "", 0)
    assert outside.stderr.startswith("warning: 10.1.1.0/24 is outside the prefixes of VPC blue")
    done = geneve(node, "route", "add", "default", "--vpc", "blue", "--blackhole")
    assert "0.0.0.0/0 or ::/0" in done.stderr


def test_apply_is_all_or_nothing_and_heeds_a_revision(node, tmp_path):
    """A file with one bad line changes nothing; a revision that has passed is a conflict."""
    good = tmp_path / "good.json"
    good.write_text('{"vpcs": [{"name": "blue", "vni": 4097, "prefixes": ["10.0.0.0/16"]}]}')
    assert geneve(node, "apply", "-f", good).returncode == 0
    before = asked(node, "export")

    bad = tmp_path / "bad.json"
    vpcs = [
        {"name": "red", "vni": 4098, "prefixes": ["10.0.0.0/16"]},
        {"name": "green", "vni": 4098, "prefixes": ["10.0.0.0/16"]},
    ]
    bad.write_text(json.dumps({"vpcs": vpcs}))
    assert refused(node, "apply", "-f", bad) == (4, "vni_taken")
    stale = ["apply", "-f", good, "--revision", before["revision"] + 1]
    assert refused(node, *stale) == (4, "generation_mismatch")
    assert asked(node, "export") == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.json", None),
        ("half.json", '{"vpcs": ['),
        ("half.toml", "[[vpcs"),
        ("list.json", "[]"),
        ("empty.json", ""),
        ("nothing.json", "{}"),
        ("unrelated.toml", "title = 'x'"),
        ("typing.json", '{"vpc": []}'),
        ("shape.json", '{"vpcs": {}}'),
        ("field.json", '{"vpcs": [{"name": "blue"}]}'),
        ("type.json", '{"vpcs": [3]}'),
        ("binary.json", b"\xff\xfe\x00"),
        ("deep.json", "[" * 100_000),
    ],
)
def test_a_bad_state_file_is_refused_and_changes_nothing(node, tmp_path, name, content):
    """Exit 2 with a sentence; an empty file does not mean: delete everything."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    before = asked(node, "export")
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    status, _ = refused(node, "apply", "-f", file)

    assert status == 2
    assert asked(node, "export") == before


def test_netns_exec_is_transparent(node):
    """Input, output and exit status pass; only the network namespace is another."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    netns = asked(node, "attach", "web", "--vpc", "blue")["slot"]["netns"]

    there = geneve(node, "netns-exec", "web", "--", "cat", input="through\n")
    assert (there.stdout, there.returncode) == ("through\n", 0)
    assert geneve(node, "netns-exec", "web", "--", "sh", "-c", "exit 42").returncode == 42
    assert geneve(node, "netns-exec", "web", "--", "no-such-command").returncode == 127
    assert geneve(node, "netns-exec", "web", "--", "/etc/passwd").returncode == 126
    inode = geneve(node, "netns-exec", "web", "--", "stat", "-Lc", "%i", "/proc/self/ns/net")
    assert inode.stdout == subprocess.run(
        ["stat", "-Lc", "%i", netns], capture_output=True, text=True, check=True
    ).stdout
    mounts = geneve(node, "netns-exec", "web", "--", "readlink", "/proc/self/ns/mnt")
    assert mounts.stdout == subprocess.run(
        ["readlink", "/proc/self/ns/mnt"], capture_output=True, text=True, check=True
    ).stdout
    # An option of the command is the command's, -j too.
    assert geneve(node, "netns-exec", "web", "--", "echo", "-j").stdout == "-j\n"


def test_drops_and_drops_watch_show_what_is_refused(node):
    """A drop has its reason in the table at once, and in the watched stream when it happens."""
    geneve(node, "vpc", "create", "blue", "--vni", BLUE, "--prefix", "10.0.0.0/16")
    geneve(node, "attach", "web", "--vpc", "blue")
    geneve(node, "route", "add", "10.0.9.0/24", "--vpc", "blue", "--blackhole")
    watch = subprocess.Popen(
        [COMMAND, "-j", "drops", "--watch", "--interval", "0.1"],
        env=node.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen: list[dict[str, object]] = []
        while not any(item["reason"] == "blackhole" for item in seen):
            ping = ["netns-exec", "web", "--", "ping", "-c", "1", "-W", "0.2", "10.0.9.1"]
            assert geneve(node, *ping).returncode == 1
            if watch.poll() is not None:
                break
            # A drop before its first look is none that was added.
            if select.select([watch.stdout], [], [], 0.5)[0]:
                seen.append(json.loads(watch.stdout.readline()))
    finally:
        watch.send_signal(signal.SIGINT)
        _, err = watch.communicate(timeout=20)

    assert (err, watch.returncode) == ("", 130)
    drop = next(item for item in seen if item["reason"] == "blackhole")
    assert (drop["direction"], drop["class"], drop["packets"]) == ("tx", "policy", 1)
    table = geneve(node, "drops").stdout
    assert re.search(r"^blackhole +tx +policy +\d+ +\d+ +\S", table, re.M)
    assert len(geneve(node, "drops", "--all").stdout.splitlines()) > 40


def test_who_is_not_root_is_not_permitted(node):
    """Exit 7 with what to do, for a command and for an agent alike; help and version work."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        os.chmod(directory, 0o755)
        config = Path(directory, "agent.toml")
        config.write_text(node.config.read_text())
        for words in (["list"], ["agent", "run", "--config", str(config)]):
            done = as_nobody(*words, node=node)
            assert done.returncode == 7, done.stderr
            assert "(not_permitted)" in done.stderr
            assert "sudo" in done.stderr
            assert "Traceback" not in done.stderr
        report = as_nobody("doctor", "--config", str(config), node=node)
        assert report.returncode == 1
        assert "needs root" in report.stdout
        assert "is not a network namespace" not in report.stdout
    assert as_nobody("--help", node=node).returncode == 0
    assert as_nobody("version", node=node).returncode == 0
    assert as_nobody("doctor", node=node).returncode == 1


def test_doctor_knows_a_good_node_from_a_bad_one(node, tmp_path):
    """Exit 0 and only warnings here; a wrong uplink and VTEP are failures with a fix each."""
    report = asked(node, "doctor", "--config", node.config)
    assert report["ok"]
    assert {check["status"] for check in report["checks"]} <= {"ok", "warn"}
    names = {check["name"] for check in report["checks"]}
    assert {"root", "bcc", "headers", "mount namespace", "uplink uplink0", "vtep"} <= names

    bad = tmp_path / "bad.toml"
    text = node.config.read_text()
    bad.write_text(text.replace("uplink0", "nosuch0").replace(node.vtep, "192.0.2.222"))
    done = geneve(node, "doctor", "--config", bad)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    for name in ("uplink nosuch0", "vtep"):
        at = next(n for n, line in enumerate(lines) if re.match(rf"fail +{name} ", line))
        assert lines[at + 1].strip().startswith("fix: ")


def test_doctor_refuses_what_an_agent_refuses(node, tmp_path):
    """A CPU that is not there and the loopback as an uplink: neither is found out at the start."""
    bad = tmp_path / "bad.toml"
    text = node.config.read_text().replace("uplink0", "lo")
    bad.write_text(text.partition("[placement]")[0] + "[placement]\nagent_cpu = 8191\n")

    done = geneve(node, "-j", "doctor", "--config", bad)

    assert done.returncode == 1
    failed = {
        check["name"]: check["detail"]
        for check in json.loads(done.stdout)["checks"]
        if check["status"] == "fail"
    }
    assert failed.keys() == {"placement", "uplink lo"}
    assert failed["placement"].startswith("placement.agent_cpu is 8191")
    assert failed["uplink lo"].endswith("is the loopback interface")


def test_a_second_agent_for_the_node_is_refused(node):
    """Exit 4; the first one goes on."""
    status, code = refused(node, "agent", "run", "--config", node.config)

    assert (status, code) == (4, "agent_running")
    assert geneve(node, "node", "status").returncode == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("slots = 6", "slots = -1"),
        ("slots = 6", "slotz = 6"),
        ("[metrics]", "[metricz]"),
        ('vtep = "192.0.2.1"', 'vtep = "192.0.2"'),
        ('name = "node1"', 'name = "../node1"'),
        ("[node]", "[node"),
    ],
)
def test_an_agent_with_a_bad_configuration_does_not_start(node, tmp_path, old, new):
    """Exit 2, naming the key; before anything is made."""
    text = node.config.read_text()
    assert old in text
    file = tmp_path / "agent.toml"
    file.write_text(text.replace(old, new))

    assert refused(node, "agent", "run", "--config", file) == (2, "bad_config")


def test_an_agent_without_a_configuration_does_not_start(node, tmp_path):
    """A missing file is a usage error like any other."""
    missing = tmp_path / "none.toml"

    assert refused(node, "agent", "run", "--config", missing) == (2, "bad_config")
