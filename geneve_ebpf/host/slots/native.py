# SPDX-License-Identifier: Apache-2.0
"""A namespace's addresses once it is known whose it is: those of its VPC, on eth0 itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from geneve_ebpf.host import links, messages
from geneve_ebpf.host.netlink import Batch, RouteSocket
from geneve_ebpf.host.slots.given import visiting
from geneve_ebpf.host.slots.place import Place
from geneve_ebpf.model import Address


def number(place: Place, index: int, addresses: Sequence[Address]) -> None:
    """Give a slot's eth0 these addresses in place of the guest's; routes and neighbours stay.

    Done twice, it is as done once. Raises OSError if there is no such slot any more.
    """
    with visiting(place, index) as interface, RouteSocket() as inside:
        eth0 = links.index_by_name(inside, interface)
        # First the new ones: with its last address an interface loses its routes.
        steps = [(messages.address(eth0, one), errno.EEXIST) for one in addresses]
        for former in (place.guest.address, place.guest.address6):
            steps.append((messages.address_remove(eth0, former), errno.EADDRNOTAVAIL))
        refused = inside.tell_each([Batch([request]) for request, _ in steps])
        for code, (_, harmless) in zip(refused, steps, strict=True):
            if code not in (0, harmless):
                raise OSError(code, os.strerror(code), interface)
