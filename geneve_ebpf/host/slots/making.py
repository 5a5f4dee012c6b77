# SPDX-License-Identifier: Apache-2.0
"""Making slots, many at a time: what the kernel asks for each is asked for all of them at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import messages, namespaces, tc
from geneve_ebpf.host.netlink import Batch, RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.slots.kinds import NAMESPACE, Draft, Kind
from geneve_ebpf.host.slots.place import Place

AT_ONCE = 32  # slots; more is no faster, and one batch then lasts long


def make(door: RouteSocket, place: Place, index: int, kind: Kind = NAMESPACE) -> int:
    """Make slot `index` and return its host-side interface's index; see `make_many`."""
    settings = Settings()
    try:
        (made,) = make_many(door, place, [index], settings, kind)
    finally:
        settings.close()
    if made.error is not None:
        raise made.error
    return made.ifindex


def make_many(
    door: RouteSocket,
    place: Place,
    indexes: Sequence[int],
    settings: Settings,
    kind: Kind = NAMESPACE,
) -> list[Draft]:
    """Make slots, `AT_ONCE` at most; each draft has the interface's index, or the error.

    The socket is in the node's namespace, and so is the thread. Of a slot that
    cannot be made nothing is left behind. Interfaces come up last, and only when
    the kernel says that our programs are on the blocks they are in: they are
    never open, not for one packet.
    """
    drafts = [Draft(index) for index in indexes]
    done = False
    try:
        _make_namespaces(place, drafts, settings, kind)
        kind.connect(door, place, _good(drafts))
        _silence(drafts, settings)
        _join_blocks(door, place, drafts)
        _each(drafts, lambda draft: kind.furnish(place, draft))
        good = _good(drafts)
        ups = [Batch([messages.link_up(draft.ifindex)]) for draft in good]
        for draft, refused in zip(good, door.tell_each(ups), strict=True):
            if refused:
                draft.error = OSError(refused, os.strerror(refused), draft.name)
        _each(drafts, lambda draft: kind.settle(place, draft))
        done = True
    finally:
        for draft in drafts:
            if draft.inside is not None:
                draft.inside.close()
            if draft.namespace >= 0:
                os.close(draft.namespace)
            if draft.error is not None or not done:
                try:
                    _undo(door, place, draft)
                except OSError as error:
                    # The others are undone all the same; whoever makes this slot next, or the
                    # next slot process, drops what is there under its number.
                    draft.error = OSError(
                        error.errno,
                        f"{draft.error or 'it was not made'}; and it cannot be undone: {error}",
                    )
    return drafts


def _good(drafts: Sequence[Draft]) -> list[Draft]:
    return [draft for draft in drafts if draft.error is None]


def _each(drafts: Sequence[Draft], step: Callable[[Draft], None]) -> None:
    for draft in _good(drafts):
        try:
            step(draft)
        except (OSError, GeneveError) as error:
            draft.error = error


def _make_namespaces(
    place: Place, drafts: Sequence[Draft], settings: Settings, kind: Kind
) -> None:
    if not kind.namespaced:
        _each(drafts, lambda draft: kind.prepare(place, draft, settings))
        return

    def begin(draft: Draft) -> None:
        draft.namespace = namespaces.enter_new(place.netns(draft.index))
        settings.enter()
        draft.inside = RouteSocket(messages.ADDRESSES6)
        kind.prepare(place, draft, settings)

    with _coming_back():
        _each(drafts, begin)


@contextmanager
def _coming_back() -> Iterator[None]:
    """Wherever the thread goes meanwhile, it is back afterwards."""
    before = namespaces.current()
    try:
        try:
            yield
        finally:
            namespaces.come_back(before)
    finally:
        os.close(before)


def _silence(drafts: Sequence[Draft], settings: Settings) -> None:
    """What `links.silence` is for, on the host sides, which have no ARP already: no IPv6."""

    def silence(draft: Draft) -> None:
        # There is no such setting where the kernel has no IPv6 at all.
        settings.write(f"ipv6/conf/{draft.name}/disable_ipv6", b"1")

    _each(drafts, silence)


def _join_blocks(door: RouteSocket, place: Place, drafts: Sequence[Draft]) -> None:
    good = _good(drafts)
    joins = [
        Batch([messages.clsact(draft.ifindex, place.block, place.block + 1)]) for draft in good
    ]
    for draft, refused in zip(good, door.tell_each(joins), strict=True):
        if refused == errno.EEXIST:
            draft.error = GeneveError(
                Code.NODE_SETUP,
                f"something gave {draft.name} a clsact of its own, so it cannot join the"
                " shared block",
                hint="keep other tools of the machine off interfaces called gnv*",
            )
        elif refused:
            draft.error = OSError(refused, os.strerror(refused), draft.name)
    for block, program in ((place.block, place.program), (place.block + 1, place.guard)):
        found = tc.block_programs(door, block)
        if found != [program]:
            for draft in _good(drafts):
                draft.error = GeneveError(
                    Code.NODE_SETUP,
                    f"the shared block {block} does not hold our program {program} alone, but"
                    f" {' '.join(map(str, found)) or 'none'}",
                    hint="another tool changed it: geneve-ebpf node down, then start again",
                )


def _undo(door: RouteSocket, place: Place, draft: Draft) -> None:
    if draft.ifindex and not draft.kept:
        with suppress(OSError):  # gone with its namespace
            door.tell_all([messages.link_remove(draft.ifindex)])
    if draft.namespace >= 0:
        namespaces.remove(place.netns(draft.index))
