# SPDX-License-Identifier: Apache-2.0
"""deploy/: the unit is one that systemd takes, alerts fire, and no file names what is not there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from geneve_ebpf import abi
from geneve_ebpf.agent.config import load
from geneve_ebpf.cli.checks import NEIGHBOURS_WANTED
from geneve_ebpf.dataplane import relay
from geneve_ebpf.dataplane.merging import DEVICE
from geneve_ebpf.exporter.metrics import METRICS
from geneve_ebpf.loader.hooks import ANCHOR
from geneve_ebpf.model import host_interface

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "geneve-ebpf.service"
# systemd.exec(5): each of these gives the service a mount namespace of its own, where pins
# and slots' namespaces would vanish with it.
OWN_MOUNTS = re.compile(
    r"^(Protect(System|Home|Kernel\w+|ControlGroups|Proc)|Private(Tmp|Devices|Mounts|IPC)|"
    r"(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|Bind\w*Paths|TemporaryFileSystem|"
    r"Root(Directory|Image)|MountImages|MountFlags|DynamicUser|LoadCredential\w*)=",
    re.MULTILINE,
)


def systemd(*words: object) -> str:
    """What systemd-analyze says of a unit file, without a running systemd."""
    done = subprocess.run(
        ["systemd-analyze", *(str(word) for word in words)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else done.stderr


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    beside = Path(sys.executable).with_name("promtool")  # or it was installed before
    return subprocess.run(
        [str(beside) if beside.exists() else "promtool", *words],
        cwd=DEPLOY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit as installed, with a command and a manual that are there."""
    text = UNIT.read_text()
    text = text.replace("/usr/local/bin/geneve-ebpf ", "/bin/true ")
    text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)
    path = tmp_path / "geneve-ebpf.service"
    path.write_text(text)
    return path


def test_systemd_understands_the_unit(unit):
    """No unknown key, no value that it would ignore."""
    assert systemd("verify", "--man=no", unit) == ""


def test_systemd_would_complain_of_a_key_that_it_does_not_know(unit):
    """Otherwise the test before could not fail."""
    unit.write_text(unit.read_text().replace("[Service]\n", "[Service]\nNoSuchKey=1\n"))

    assert "NoSuchKey" in systemd("verify", "--man=no", unit)


def test_the_unit_gives_the_agent_no_mount_namespace_of_its_own():
    assert OWN_MOUNTS.search("ProtectSystem=strict")
    assert not OWN_MOUNTS.search(UNIT.read_text())


def test_systemd_finds_the_unit_no_more_exposed_than_was_accepted(unit):
    """6.0 of 10; all that is left is what would need a mount or user namespace, or no root."""
    assert systemd("security", "--offline=true", "--threshold=61", unit) == ""


def test_the_example_configuration_is_one_that_the_agent_reads():
    config = load(DEPLOY / "agent.toml")

    assert config.node.slots == 256


def test_prometheus_takes_the_alerts():
    done = promtool("check", "rules", "alerts.yml")

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_for_its_trouble_and_none_on_a_node_that_is_well():
    done = promtool("test", "rules", "alerts.test.yml")

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test():
    """In both halves: silent on a node that is well, and among those that fire in the end. One
    that waits for hours has a look of its own there."""
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text())
    tests = (DEPLOY / "alerts.test.yml").read_text()

    assert set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", tests)) == set(alerts)
    assert f"exp_samples: [{{value: {len(alerts) - 1}}}]" in tests
    assert 'alertname="GeneveNodeCordonedLong",alertstate="firing"' in tests


@pytest.mark.parametrize("name", ["alerts.yml", "alerts.test.yml", "grafana-nodes.json"])
def test_every_metric_and_label_that_is_named_exists(name):
    """An alert on a metric that nobody exposes never fires."""
    text = (DEPLOY / name).read_text().replace('\\"', '"')
    known = {metric.name: metric for metric in METRICS}

    used = re.findall(r"(geneve_ebpf_\w+?)(?:_bucket|_count|_sum)?\b(?:\{([^}]*)\})?", text)
    assert used
    for metric, labels in used:
        assert metric in known
        names = set(re.findall(r"(\w+)=~?\"", labels)) - {"instance", "job", "le"}
        assert names <= set(known[metric].labels)
    reasons = {reason.slug for reason in abi.drop_reasons()}
    assert set(re.findall(r'reason="(\w+)"', text)) <= reasons


def test_the_dashboard_is_one_that_grafana_can_import():
    """Panels with ids of their own that do not overlap, each asking the chosen data source."""
    dashboard = json.loads((DEPLOY / "grafana-nodes.json").read_text())

    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered
        assert place["x"] + place["w"] <= 24
        assert panel["targets"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("99-zz-geneve-ebpf.rules", r'KERNEL!="(.+)", GOTO'),
        ("10-geneve-ebpf.link", r"^OriginalName=(.+)$"),
        ("10-geneve-ebpf.network", r"^Name=(.+)$"),
        ("geneve-ebpf-networkmanager.conf", r"interface-name:(.+)$"),
    ],
)
def test_other_tools_are_kept_off_every_interface_that_a_node_makes(name, pattern):
    """The slots' and our own, and no others."""
    (glob,) = re.findall(pattern, (DEPLOY / name).read_text(), re.MULTILINE)

    ours = (ANCHOR, DEVICE, relay.NEAR, relay.FAR)
    for interface in (host_interface(0), host_interface(16383), *ours):
        assert fnmatch(interface, glob)
    assert not any(fnmatch(other, glob) for other in ("eth0", "lo", "gretap0", "veth0"))


def test_the_machine_is_given_the_room_that_doctor_asks_for():
    """In both families' tables."""
    text = (DEPLOY / "60-geneve-ebpf.conf").read_text()

    limits = re.findall(r"^net\.ipv[46]\.neigh\.default\.gc_thresh3 = (\d+)$", text, re.MULTILINE)
    assert [int(limit) for limit in limits] == [NEIGHBOURS_WANTED] * 2
