# SPDX-License-Identifier: Apache-2.0
"""What a profile counts for which part."""

from __future__ import annotations

import pytest

from bench import profile
from bench.harness import Row

# As `perf script -F comm,ip,sym` prints it: the innermost function first.
SCRIPT = """\
traffic
\tffffffff81a00010 skb_segment
\tffffffff81a00020 skb_udp_tunnel_segment
\tffffffff81a00030 veth_xmit
\tffffffff81a00040 tcp_sendmsg_locked

traffic
\tffffffffc0000010 bpf_fib_lookup
\tffffffffc0000020 bpf_prog_0123456789abcdef_sandbox_tx
\tffffffff81a00050 tcf_classify

swapper
\tffffffff81a00060 veth_poll

traffic
\t    7f0000000010 main
"""


def test_a_sample_counts_for_its_innermost_part():
    """The caller's part has it only where nothing further in has a name."""
    spent = profile.seconds_by_part(SCRIPT.splitlines(), "traffic")

    assert {name: round(took * profile.RATE) for name, took in spent.items() if took} == {
        "software segmentation": 1,
        "sandbox_tx": 1,
        profile.REST: 1,
    }


def test_other_programs_samples_are_left_out():
    """The machine does other things too."""
    assert [command for command, _ in profile.stacks(SCRIPT.splitlines())].count("swapper") == 1
    assert profile.seconds_by_part(SCRIPT.splitlines(), "traffic")["veths and queues"] == 0


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("__skb_gso_segment", "software segmentation"),
        ("udp4_gro_receive", "GRO"),
        ("vxlan_xmit_one", "tunnel device"),
        ("bpf_prog_0123456789abcdef_uplink_rx", "uplink_rx"),
        ("br_handle_frame", "bridge"),
        ("tcp_write_xmit", "IP, TCP, UDP: sending"),
        ("tcp_sendmsg_locked", "copying in"),
    ],
)
def test_a_function_has_its_part(function, part):
    """Those that begin alike are told apart."""
    assert profile.part_of([function]) == part


def test_the_table_has_a_line_for_each_part():
    """Medians, a column for each contestant."""
    parts = (*profile.PARTS, profile.REST, "all")
    rows = {
        f"tcp1.{name}.{part}": Row("", "us/Mbit", [[1.0], [number], [9.0]])
        for number, name in enumerate(profile.CONTESTANTS, 2)
        for part in parts
    }

    lines = profile.table("tcp1", rows).splitlines()[3:]

    assert lines == [f"| {part} | 2.00 | 3.00 | 4.00 |" for part in parts]
