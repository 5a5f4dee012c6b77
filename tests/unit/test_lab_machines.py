# SPDX-License-Identifier: Apache-2.0
"""The labs of whole machines: what can be said of them without starting one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def vagrant(directory: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=directory,
        env={**os.environ, "VAGRANT_HOME": str(home), "VAGRANT_CHECKPOINT_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_ruby_has_nothing_to_say_about_the_vagrantfile():
    """Not even a warning, of a name that nobody uses for one."""
    done = subprocess.run(
        ["ruby", "-wc", "Vagrantfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "Syntax OK\n", "")


def test_vagrant_takes_the_vagrantfile(tmp_path):
    """All three machines; no provider is there to ask about the rest."""
    lab = tmp_path / "lab"
    lab.mkdir()
    (lab / "Vagrantfile").write_text((ROOT / "Vagrantfile").read_text())
    (lab / "lab").symlink_to(ROOT / "lab")

    done = vagrant(lab, tmp_path / "home")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Vagrantfile validated successfully." in done.stdout
    assert set(re.findall(r"==> (\w+):", done.stdout)) == {"node1", "node2", "client"}


@pytest.mark.parametrize("name", ["provision.sh", "qemu"])
def test_the_shell_scripts_parse(name):
    done = subprocess.run(
        ["bash", "-n", str(ROOT / "lab" / name)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_lab_bench_says_how_it_is_used():
    done = subprocess.run(
        [str(ROOT / "lab" / "bench"), "--help"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "--through" in done.stdout


def test_lab_bench_names_the_machine_that_does_not_answer():
    """One line, status 1; nothing was made anywhere."""
    done = subprocess.run(
        [str(ROOT / "lab" / "bench"), "--through", "false {}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bench: node1 does not answer through: false {}\n"
