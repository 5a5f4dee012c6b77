# SPDX-License-Identifier: Apache-2.0
"""What the kernel lists in more than one message is read to its end."""

from __future__ import annotations

import subprocess

from geneve_ebpf.host import links, namespaces, tc
from geneve_ebpf.host.netlink import IPRoute, RouteSocket
from lab.network import NETNS, run, set_up_namespace
from tests.nodes import PREFIX

NAME = f"{PREFIX}-dumps"
PAIRS = 250


def test_who_looks_for_one_among_hundreds_can_ask_for_more_on_the_socket():
    """The kernel refuses a second dump (EBUSY) while one was not read to its end."""
    set_up_namespace(NAME)
    try:
        made = "".join(f"link add a{n} type veth peer name b{n}\n" for n in range(PAIRS))
        hung = "".join(f"qdisc add dev a{n} ingress_block 7 clsact\n" for n in range(PAIRS))
        for tool, lines in (("ip", made), ("tc", hung)):
            subprocess.run([tool, "-n", NAME, "-batch", "-"], input=lines, text=True, check=True)

        with namespaces.entering(NETNS / NAME), IPRoute() as ip, RouteSocket() as door:
            for name in ("a0", f"a{PAIRS - 1}"):
                found = tc.shared_blocks(door, links.describe(ip, name).index)
                assert (found, tc.block_programs(door, 7)) == ((7, 0), [])
            assert tc.blocks_in_use(door) == {7}
            assert tc.shared_blocks(door, links.describe(ip, "b0").index) == (0, 0)
    finally:
        run("ip", "netns", "delete", NAME)
