# SPDX-License-Identifier: Apache-2.0
"""Whether an address is the node's own. Without netlink, for processes that do none."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address


def is_own(address: IPv4Address | IPv6Address, uplinks: tuple[str, ...] = ()) -> bool:
    """Whether an interface of the thread's network namespace has the address.

    In the VRF that the uplinks are in, if in one. An IPv6 address that is still
    being checked for duplicates does not count: nobody can use it yet.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as door:
        for name in uplinks:
            try:
                # A socket that is bound to an interface looks in that one's VRF.
                door.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
                break
            except OSError:  # there is none of that name at the moment
                continue
        try:
            door.bind((str(address), 0))
        except OSError:
            return False
    return True
