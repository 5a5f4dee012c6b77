# SPDX-License-Identifier: Apache-2.0
"""The process that makes and destroys slots and watches the uplinks, so that the agent does no
netlink.

    python -m geneve_ebpf.agent.slot_process --settings-json SETTINGS

Descriptor 3 is a stream socket to the agent, JSON lines both ways:

    {"op": "make", "indexes": [N, …], "kind": "namespace"|"tap"|"host-tap"}
    {"op": "destroy", "indexes": [N, …]}
    {"op": "number", "indexes": [N], "addresses": ["…"]}
    {"op": "own", "indexes": [N], "kind": "tap"|"host-tap", "owner": UID}
    {"op": "open", "indexes": [N], "kind": "tap"|"host-tap"}
    {"op": "give", "indexes": [N], "netns": "PATH", "interface": "NAME", "existing": true|false}
    {"event": "ready", "slots": [[INDEX, IFINDEX], …], "us": N}
    {"event": "gone", "indexes": [N, …]}
    {"event": "lost", "index": N}
    {"event": "faulty", "index": N, "fault": "…"}
    {"event": "failed", "index": N, "op": "make"|"destroy", "message": "…"}
    {"event": "answered", "op": "number"|"own"|"open"|"give", "index": N,
        "error": null|{"code": "…", …}, "passes": true|false, "content": null|{…}}
    {"event": "uplinks", "mtu": N, "problems": ["…"], "down": ["…"],
        "merging": {"device": "vxlan", "uplinks": ["…"], "reasons": ["…"]}, "no_relay": "…"}

It writes `bindings` and `slot_by_ifindex` at both ends of a slot's life. "ready" comes for those
of an order that were made, all together in so many microseconds; the others fail one by one.
"gone" comes when the interface has vanished and an RCU grace period is over: the index may be used
again. "lost" comes when a slot turns out to have no interface any more: somebody deleted it, or the
namespace is gone; "faulty" when somebody has set it down or changed its clsact, and with no fault
when that was undone. The kernel tells of such changes; what it had no room to tell is found by a
look at all slots, every minute.
"answered" says what became of what is asked about one slot: "number" gives eth0 in a namespace its
VPC addresses in place of what every slot has, "own" gives a tap to a user, "open" opens one, whose
descriptor passes with the answer's line, "give" makes a reserved slot in a namespace that others
made, of an interface that is there already or a new one, or finds the slot that is there.
"uplinks" comes at the start and when an uplink went, came back, changed its MTU or whether it
merges, and when the relay to host taps did; eth0 in every slot follows, a few slots at a time.

When the agent goes, so does this process, whatever it is doing: what it leaves
half made has no entry in `slot_by_ifindex`, and the next one clears it; what it
leaves half destroyed still has one, and is destroyed once more.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any, ClassVar, NamedTuple

from geneve_ebpf.dataplane import DataPlane, facts, splice_program
from geneve_ebpf.dataplane.uplinks import Seen, Uplinks
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.host import messages, namespaces, slots, taps
from geneve_ebpf.host.given import Given, Records
from geneve_ebpf.host.netlink import IPRoute, NetlinkError, RouteSocket
from geneve_ebpf.host.settings import Settings
from geneve_ebpf.host.walks import Walk, bad_netns
from geneve_ebpf.loader import hooks
from geneve_ebpf.loader.bpf import quiesce
from geneve_ebpf.model import AddressMode, NodeSettings, SlotKind, SlotState, host_interface

_VANISH_PATIENCE = 2.0  # seconds until a namespace that lingers loses its interface
_ROUND = 60.0  # seconds between looks at everything, whatever else there is to do
_SOON = 2.0  # seconds until such a look when the kernel could not tell all that changed
_HEARD_AT_ONCE = 256  # changes of interfaces that are read before it is somebody else's turn
_POLL = 0.01  # seconds between looks at interfaces that are to vanish
_RESIZE_AT_ONCE = 32  # slots; less than a millisecond each, and orders wait meanwhile
_WALKS_MAX = 64  # paths that are walked at once; the oldest is then waited for
_RESIZE_SECONDS = 0.05  # after so long no other one; the way into a namespace may be long


class Reply(NamedTuple):
    """What comes of a question about one slot.

    passed: a descriptor, which is passed on with it and closed.
    """

    passed: int | None = None
    content: dict[str, Any] | None = None


class SlotMaker:
    """Takes one order at a time, of many slots; watches in between for interfaces that vanish."""

    def __init__(self, settings: NodeSettings, door: socket.socket) -> None:
        found = facts(settings.run_directory)
        self._agent = door
        self._plane = DataPlane.open(settings.run_directory)
        self._place = slots.Place(
            settings.run_directory / "netns",
            settings.guest,
            found.mtu,
            found.block,
            found.program,
            found.guard,
        )
        self._ip = IPRoute()
        self._route = RouteSocket()
        self._settings = Settings()
        self._kinds: dict[str, slots.Kind] = {
            kind.name.value: kind
            for kind in (
                slots.NAMESPACE,
                slots.TapKind(settings.tap_owner, splice_program(settings.run_directory)),
                slots.HostTapKind(settings.tap_owner),
            )
        }
        self._records = Records(settings.run_directory)
        self._given: dict[int, Given] = {}  # slots in namespaces that others made
        self._walks: dict[Walk, Callable[[], None]] = {}  # and what is to be done at their ends
        self._vanishing: dict[int, float] = {}  # index -> when to stop waiting
        self._to_resize: list[int] = []
        self._to_resize_later: set[int] = set()  # those that failed, once a round
        self._ear = RouteSocket(messages.LINKS | messages.TRAFFIC_CONTROL)
        self._next_look = 0.0  # by the monotonic clock
        self._faults: dict[int, str] = {}  # of slots, as the agent knows them
        self._seen: Seen | None = None  # what the agent knows
        self._uplinks = Uplinks(settings, self._ip, self._route)

    def run(self) -> None:
        """Serve until the agent hangs up."""
        self._clear_half_made()
        self._look_at_everything()
        # What a change of the MTU just before this process's time has left undone.
        self._to_resize = [slot.index for slot in self._plane.slots()]
        pending = b""
        while True:
            ears: list[socket.socket | RouteSocket | Walk] = [self._agent, self._ear, *self._walks]
            heard = select.select(ears, [], [], self._rest())[0]
            if self._ear in heard:
                self._listen()
            self._end_walks(heard)
            if self._agent in heard:
                data = heard_from(self._agent)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    self._obey(**order)
                    self._look_for_vanished()
            elif self._to_resize:
                self._resize_some()
            elif self._vanishing:
                self._look_for_vanished()
            if time.monotonic() >= self._next_look:
                self._look_at_everything()

    def _rest(self) -> float:
        """Seconds until there is something to do that nobody tells us of."""
        if self._to_resize:
            return 0.0
        now = time.monotonic()
        rest = _POLL if self._vanishing else self._next_look - now
        return max(0.0, min([rest, *(walk.end - now for walk in self._walks)]))

    def _end_walks(self, heard: list[Any]) -> None:
        """Do what was asked about the paths that have led somewhere, or nowhere for too long."""
        now = time.monotonic()
        for walk in [walk for walk in self._walks if walk in heard or walk.end <= now]:
            self._walks.pop(walk)()

    def _listen(self) -> None:
        """Something changed on some interface, our own slots' among them."""
        watched, concerned = self._uplinks.watched, False
        suspects: set[int | None] = set()
        try:
            for _ in range(_HEARD_AT_ONCE):
                heard = self._ear.listen(0)
                if not heard:
                    break
                for kind, body in heard:
                    is_link = kind in (messages.NEWLINK, messages.DELLINK)
                    concerned |= is_link and messages.link_name(body) in watched
                    if self._is_suspicious(kind, body):
                        suspects.add(self._plane.slot_of(messages.interface_of(body)))
        except OSError:  # more changed than could be told: uplinks, too, are looked at then
            self._next_look = min(self._next_look, time.monotonic() + _SOON)
        for index in suspects:
            if index is not None:
                self._examine(index)
        if concerned:
            self._look_at_uplinks()

    def _is_suspicious(self, kind: int, notification: bytes) -> bool:
        """Whether it may say that a slot's host side is not as it was made, or is so again."""
        if kind == messages.NEWLINK and messages.link_is_down(notification):
            return True
        if kind in (messages.NEWLINK, messages.NEWQDISC):
            return bool(self._faults)
        return kind in (messages.DELLINK, messages.DELQDISC)

    def _look_at_uplinks(self) -> None:
        seen = self._uplinks.look()
        if seen.mtu != self._place.mtu:
            self._place = replace(self._place, mtu=seen.mtu)
            self._to_resize = [slot.index for slot in self._plane.slots()]
        if seen != self._seen:
            self._seen = seen
            self._tell(
                event="uplinks",
                mtu=seen.mtu,
                problems=seen.problems,
                down=seen.down,
                merging=asdict(seen.merged),
                no_relay=seen.no_relay,
            )

    def _resize_some(self) -> None:
        end = time.monotonic() + _RESIZE_SECONDS
        for index in self._to_resize[:_RESIZE_AT_ONCE]:
            del self._to_resize[0]
            try:
                slots.resize(self._place, index, self._address6(index))
            except OSError:  # somebody took it apart, or the kernel had no memory just now
                self._to_resize_later.add(index)
            if time.monotonic() > end:
                break

    def _address6(self, index: int) -> IPv6Address | None:
        """What eth0 of a slot has of IPv6; None where a machine or IPv4 alone is in there."""
        if self._plane.slot(index).kind is not SlotKind.NAMESPACE:
            return None
        held = self._plane.attachment(index)
        if held is not None and held.mode is AddressMode.NATIVE:
            return held.endpoint.address6
        return self._place.guest.address6

    def _look_at_everything(self) -> None:
        """What failed may be possible now, and what changed may not have been told."""
        self._next_look = time.monotonic() + _ROUND
        self._to_resize = sorted({*self._to_resize, *self._to_resize_later})
        self._to_resize_later = set()
        made = [(slot.index, slot.ifindex) for slot in self._plane.slots()]
        try:
            for index, fault in slots.faults(self._route, self._place, made):
                self._found(index, fault)
        except OSError:  # an answer was lost
            self._next_look = time.monotonic() + _SOON
        self._look_at_uplinks()

    def _examine(self, index: int) -> None:
        ifindex = self._plane.slot(index).ifindex
        try:
            self._found(index, slots.fault(self._route, self._place, index, ifindex))
        except OSError:
            self._next_look = min(self._next_look, time.monotonic() + _SOON)

    def _found(self, index: int, fault: str | None) -> None:
        """Tell what others have done to a slot that is not being destroyed; None: it is gone."""
        if index in self._vanishing:
            return
        if fault is None:
            self._tell(event="lost", index=index)
        elif fault != self._faults.get(index, ""):
            self._faults[index] = fault
            if not fault:
                del self._faults[index]
            self._tell(event="faulty", index=index, fault=fault)

    def _clear_half_made(self) -> None:
        """Drop what a maker that died in the middle left: a namespace that no map knows."""
        known = {slot.index for slot in self._plane.slots()}
        slots.clear_half_made(self._ip, self._place, known)
        self._given = dict(self._records)
        for index in self._given.keys() - known:
            self._take_back(index)

    def _obey(self, op: str, indexes: list[int], **more: Any) -> None:
        if op in self._answers:
            self._answer(op, indexes[0], partial(self._answers[op], self, indexes[0], **more))
            return
        try:
            if op == "make":
                self._make(indexes, self._kinds[more["kind"]])
            else:
                self._destroy(indexes)
        except (GeneveError, OSError) as error:
            self._tell_failed(op, indexes, str(error))
        except Exception as error:  # pyroute2 has errors of its own
            self._tell_failed(op, indexes, repr(error))

    def _answer(self, op: str, index: int, act: Callable[[], Reply | None]) -> None:
        """Do what is asked about a slot and say what came of it; later, if that is None."""
        error: GeneveError | None = None
        reply: Reply | None = Reply()
        try:
            reply = act()
        except GeneveError as refused:
            error = refused
        except (OSError, NetlinkError) as failed:
            error = GeneveError(Code.NO_SLOT, str(failed), hint="try again with another slot")
        if reply is None:
            return
        self._tell(
            reply.passed,
            event="answered",
            op=op,
            index=index,
            error=error and error.as_json()["error"],
            passes=reply.passed is not None,
            content=reply.content,
        )

    def _number(self, index: int, addresses: list[str]) -> Reply:
        slots.number(self._place, index, [ip_address(one) for one in addresses])
        return Reply()

    def _own(self, index: int, kind: str, owner: int) -> Reply:
        with slots.beside_tap(self._place, index, SlotKind(kind)) as tap:
            taps.give(tap, owner)
        return Reply()

    def _open(self, index: int, kind: str) -> Reply:
        with slots.beside_tap(self._place, index, SlotKind(kind)) as tap:
            return Reply(taps.open_tap(tap))

    def _give(self, index: int, netns: str, interface: str, existing: bool) -> None:
        """Find the namespace; meanwhile there is other work to do."""
        if len(self._walks) >= _WALKS_MAX:
            self._walks.pop(next(iter(self._walks)))()
        walk = Walk(netns)
        give = partial(self._give_there, index, walk, netns, interface, existing)
        self._walks[walk] = partial(self._answer, "give", index, give)

    def _give_there(
        self, index: int, walk: Walk, netns: str, interface: str, existing: bool
    ) -> Reply:
        """Make the slot, unless there is one of that interface in that namespace."""
        try:
            namespace = walk.namespace()
        except TimeoutError as error:
            raise bad_netns(netns, str(error.strerror)) from None
        try:
            wanted = Given.of(netns, namespace, interface)
            slots.refuse_ours(self._place, wanted, namespace, hooks.ANCHOR)
            for other, one in self._given.items():
                if one.is_same(wanted) and not slots.gone(other):
                    return self._given_already(other)
            if index in self._given:  # what a maker that died in the middle left
                self._take_back(index)
            elif not slots.gone(index):
                raise GeneveError(
                    Code.NO_SLOT,
                    f"the node has an interface {host_interface(index)} that is no slot's",
                    hint="rename it, or delete it: a slot of that number is to come",
                )
            kind = slots.GivenKind(namespace, interface)
            if existing:
                kind = self._bring(namespace, interface)
                outside = kind.veth
                wanted = replace(wanted, outside=outside.name, outside_index=outside.outside)
            self._records.add(index, wanted)
            self._given[index] = wanted
            try:
                ifindex = slots.make(self._route, self._place, index, kind)
                self._plane.add_slot(index, ifindex, kind.name, SlotState.RESERVED)
            except BaseException:
                self._take_back(index)
                raise
        finally:
            os.close(namespace)
        return self._made_given(index, wanted)

    def _bring(self, namespace: int, interface: str) -> slots.BroughtKind:
        """A slot's kind of an interface that is there. Raises BAD_INTERFACE."""
        veth = slots.find(self._route, self._place.guest, namespace, interface)
        if hooks.has_tcx_programs(veth.outside):
            raise GeneveError(
                Code.BAD_INTERFACE,
                f"{veth.name}, in the node's namespace, has TCX programs",
                hint="bpftool net show: they would come before the node's own",
                field="interface",
            )
        return slots.BroughtKind(namespace, interface, veth=veth)

    def _given_already(self, index: int) -> Reply:
        slot = self._plane.slot(index)
        if slot.state is SlotState.TAKEN and self._plane.attachment(index) is None:
            raise GeneveError(
                Code.BUSY, f"slot-{index} is there and is being destroyed", hint="try again"
            )
        return self._made_given(index, self._given[index])

    def _made_given(self, index: int, given: Given) -> Reply:
        return Reply(
            content={
                "slot": index,
                "ifindex": self._plane.slot(index).ifindex,
                "given": asdict(given),
            }
        )

    def _take_back(self, index: int) -> None:
        """Undo what was done in a namespace of others' and is in no map."""
        former = self._given.get(index)
        if former is not None and former.outside:
            slots.give_back(self._route, index, former)
        else:
            slots.cut_off(self._ip, index)
        self._forget_given(index)

    def _forget_given(self, index: int) -> None:
        if self._given.pop(index, None) is not None:
            self._records.remove(index)

    # What answers a question about one slot.
    _answers: ClassVar[dict[str, Callable[..., Reply | None]]] = {
        "number": _number,
        "own": _own,
        "open": _open,
        "give": _give,
    }

    def _make(self, indexes: list[int], kind: slots.Kind) -> None:
        began = time.perf_counter()
        # What a maker that died in the middle left under these numbers. Without a
        # namespace of ours it is somebody else's, and making the slot fails.
        stale = [index for index in indexes if self._place.netns(index).exists()]
        for index in stale:
            slots.drop(self._place, index)
        slots.wait_gone(self._ip, stale)
        made, unknown = [], []
        for draft in slots.make_many(self._route, self._place, indexes, self._settings, kind):
            failure = draft.error
            if failure is None:
                try:
                    self._plane.add_slot(draft.index, draft.ifindex, kind.name)
                except (GeneveError, OSError) as error:
                    failure = error
                    unknown.append(draft.index)
            if failure is None:
                made.append((draft.index, draft.ifindex))
            else:
                self._tell_failed("make", [draft.index], str(failure))
        if made:
            spent = round((time.perf_counter() - began) * 1e6)
            self._tell(event="ready", slots=made, us=spent)
        self._clear_unknown(unknown)

    def _clear_unknown(self, indexes: list[int]) -> None:
        """Drop slots that were made and are in no map; they have been said to have failed."""
        # One that stays is in its index's way, which the next try to make it will say.
        with contextlib.suppress(OSError, NetlinkError):
            for index in indexes:
                if not slots.drop(self._place, index):
                    slots.cut_off(self._ip, index)
            slots.wait_gone(self._ip, indexes)

    def _tell_failed(self, op: str, indexes: list[int], message: str) -> None:
        for index in indexes:
            self._tell(event="failed", index=index, op=op, message=message)

    def _destroy(self, indexes: list[int]) -> None:
        now = time.monotonic()
        for index in indexes:
            try:
                vanishes = slots.drop(self._place, index)
            except OSError as error:
                # This one alone: an index that is said to have failed is tried again, and
                # by then one that vanished may be somebody's slot once more.
                self._tell_failed("destroy", [index], str(error))
            else:
                self._vanishing[index] = now + _VANISH_PATIENCE if vanishes else now

    def _look_for_vanished(self) -> None:
        now = time.monotonic()
        done = [index for index in self._vanishing if slots.gone(index)]
        left = self._vanishing.keys() - done
        overdue = [index for index in left if self._vanishing[index] <= now]
        try:
            # Together: each alone holds the lock of all netlink work for tens of milliseconds,
            # and they are hundreds when the kernel is behind with namespaces.
            slots.cut_off_all(self._route, overdue)
        except OSError as error:
            for index in overdue:
                if slots.gone(index):
                    done.append(index)
                else:
                    del self._vanishing[index]
                    self._tell_failed("destroy", [index], str(error))
        else:
            done += overdue
        if not done:
            return
        for index in done:
            del self._vanishing[index]
        quiesce()  # once for all of them
        for index in done:
            self._forget_given(index)
            self._faults.pop(index, None)
            self._plane.remove_slot(index)
        self._tell(event="gone", indexes=done)

    def _tell(self, passed: int | None = None, **event: object) -> None:
        """Send an event. A descriptor that is passed goes with its first byte, and is closed
        here before its last: nobody is to find a tap busy that he has closed."""
        line = json.dumps(event).encode() + b"\n"
        # A dead agent has no use for it; the next read says that it is dead.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if passed is not None:
                try:
                    socket.send_fds(self._agent, [line[:1]], [passed])
                finally:
                    os.close(passed)
                line = line[1:]
            self._agent.sendall(line)


def heard_from(agent: socket.socket) -> bytes:
    """What it has sent; nothing once it has hung up, be it with words of ours unread."""
    try:
        return agent.recv(65536)
    except ConnectionResetError:
        return b""


def main() -> int:
    """Entry point of the process."""
    settings = NodeSettings.from_json(sys.argv[sys.argv.index("--settings-json") + 1])
    with contextlib.ExitStack() as stack:
        stack.enter_context(namespaces.entering(settings.netns))
        door = stack.enter_context(socket.socket(fileno=3))
        SlotMaker(settings, door).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
