# SPDX-License-Identifier: Apache-2.0
"""The kernel answers many requests at once: all answers arrive, and a lost one is an error."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from geneve_ebpf.host import links, messages, namespaces
from geneve_ebpf.host.netlink import Batch, RouteSocket
from lab.network import NETNS, run, set_up_namespace
from tests.nodes import PREFIX

NAME = f"{PREFIX}-answers"
NOBODY = 100_000  # from here on no interface has an index


@pytest.fixture
def door() -> Iterator[RouteSocket]:
    """A socket in a namespace where only `lo` is."""
    set_up_namespace(NAME)
    try:
        with namespaces.entering(NETNS / NAME), RouteSocket() as made:
            yield made
    finally:
        run("ip", "netns", "delete", NAME)


def refused(count: int) -> list[Batch]:
    """Requests about interfaces that are gone: each is answered, as it is refused."""
    return [Batch([messages.link_group(NOBODY + n, 7)]) for n in range(count)]


@pytest.mark.kernel
def test_every_refusal_of_many_arrives(door: RouteSocket) -> None:
    """A default buffer holds some 250 of them; the rest, the last among them, would be lost."""
    assert door.tell_each(refused(1500)) == [errno.ENODEV] * 1500
    assert door.tell_each(refused(300)) == [errno.ENODEV] * 300


def test_interfaces_that_are_all_gone_are_removed(door: RouteSocket) -> None:
    """As when the kernel takes their namespaces away meanwhile, hundreds of them."""
    links.remove_together(door, range(NOBODY, NOBODY + 700))
    assert door.tell_each(refused(1)) == [errno.ENODEV]


def test_a_lost_answer_is_an_error_and_the_next_request_is_answered(door: RouteSocket) -> None:
    """Nobody waits for it for ever."""
    door._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    with pytest.raises(OSError, match="No buffer space"):
        door.tell_each(refused(300))

    assert door.tell_each(refused(1)) == [errno.ENODEV]


def test_an_answer_that_does_not_come_is_an_error(
    monkeypatch: pytest.MonkeyPatch, door: RouteSocket
) -> None:
    """Whatever became of it."""
    monkeypatch.setattr("geneve_ebpf.host.netlink.PATIENCE", 1)
    with namespaces.entering(NETNS / NAME), RouteSocket() as impatient:
        with pytest.raises(TimeoutError, match="an answer of the kernel was lost"):
            impatient._answer()
        assert impatient.tell_each(refused(1)) == [errno.ENODEV]
