# SPDX-License-Identifier: Apache-2.0
"""Which addresses are free, against a plain model that looks at every address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from geneve_ebpf.control.addresses import AddressBook, reserved_addresses
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Route, RouteKind, Vpc

REST = 60.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def network(text):
    return IPv4Network(text)


def route(prefix, kind=RouteKind.REMOTE):
    return Route("blue", network(prefix), kind)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(clock):
    book = AddressBook(REST, clock)
    book.set_vpc(Vpc("blue", 100, (network("10.0.0.0/24"), network("10.0.9.0/30"))))
    return book


def attach(book, sandbox, address=None):
    chosen = book.choose(sandbox) if address is None else IPv4Address(address)
    if address is not None:
        book.check(sandbox, chosen)
    book.take(sandbox, chosen)
    return str(chosen)


def refusal(book, sandbox, address):
    with pytest.raises(GeneveError) as refused:
        book.check(sandbox, IPv4Address(address))
    return refused.value.code


def test_addresses_are_given_from_the_lowest(book):
    """Network, gateway and broadcast are skipped; one taken by hand is too."""
    attach(book, "x", "10.0.0.3")

    assert [attach(book, f"s{i}") for i in range(3)] == ["10.0.0.2", "10.0.0.4", "10.0.0.5"]


def test_the_next_prefix_follows_when_one_is_full(book):
    given = [attach(book, f"s{i}") for i in range(254)]

    assert given[:2] == ["10.0.0.2", "10.0.0.3"]
    assert given[252:] == ["10.0.0.254", "10.0.9.2"]
    with pytest.raises(GeneveError) as full:
        book.choose("late")
    assert full.value.code is Code.NO_ADDRESS


def test_an_address_rests_before_another_sandbox_gets_it(book, clock):
    attach(book, "a")
    book.give_back(IPv4Address("10.0.0.2"))

    assert refusal(book, "b", "10.0.0.2") is Code.ADDRESS_RESTING
    assert attach(book, "b") == "10.0.0.3"
    clock.now += REST + 1
    assert attach(book, "c") == "10.0.0.2"


def test_the_same_sandbox_has_its_address_back_at_once(book):
    attach(book, "a")
    attach(book, "b")
    book.give_back(IPv4Address("10.0.0.3"))

    assert attach(book, "b") == "10.0.0.3"


def test_a_rest_begins_anew_with_each_detach(book, clock):
    attach(book, "a")
    book.give_back(IPv4Address("10.0.0.2"))
    clock.now += REST / 2
    attach(book, "a")
    book.give_back(IPv4Address("10.0.0.2"))
    clock.now += REST / 2 + 1

    assert refusal(book, "b", "10.0.0.2") is Code.ADDRESS_RESTING
    assert attach(book, "b") == "10.0.0.3"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.0.1.1", Code.ADDRESS_OUTSIDE_VPC),
        ("10.0.0.0", Code.ADDRESS_RESERVED),
        ("10.0.0.1", Code.ADDRESS_RESERVED),
        ("10.0.0.255", Code.ADDRESS_RESERVED),
        ("10.0.9.3", Code.ADDRESS_RESERVED),
        ("10.0.0.9", Code.ADDRESS_IN_USE),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(book, address, code):
    attach(book, "x", "10.0.0.9")

    assert refusal(book, "y", address) is code


def test_addresses_behind_other_nodes_are_not_given(book):
    book.add_route(route("10.0.0.0/25"))
    book.add_route(route("10.0.0.128/32", RouteKind.BLACKHOLE))

    assert attach(book, "a") == "10.0.0.129"
    book.remove_route(network("10.0.0.0/25"))
    assert attach(book, "b") == "10.0.0.2"


def test_with_local_routes_addresses_come_from_those(book):
    """And within them, not from what a longer route takes away."""
    book.add_route(route("10.0.0.64/26", RouteKind.LOCAL))
    book.add_route(route("10.0.0.64/27"))

    assert attach(book, "a") == "10.0.0.96"
    book.add_route(route("10.0.0.64/27", RouteKind.LOCAL))
    assert attach(book, "b") == "10.0.0.64"


def test_a_hundred_thousand_host_routes_are_passed_in_steps(clock):
    """Work on the way to the next free address can be done ahead, a little at a time."""
    book = AddressBook(REST, clock)
    first = int(IPv4Address("10.0.0.2"))
    routes = (Route("blue", IPv4Network(first + i), RouteKind.REMOTE) for i in range(100_000))
    book.set_vpc(Vpc("blue", 100, (network("10.0.0.0/8"),)), routes)

    rounds = 0
    while not book.advance(1000):
        rounds += 1

    assert 99 <= rounds <= 101
    assert book.choose("a") == IPv4Address(first + 100_000)


def test_a_wide_remote_route_is_passed_in_one_step(clock):
    book = AddressBook(REST, clock)
    routes = [route("10.0.0.0/9"), route("10.200.0.0/16")]
    book.set_vpc(Vpc("blue", 100, (network("10.0.0.0/8"),)), routes)

    assert book.advance(10)
    assert str(book.choose("a")) == "10.128.0.0"


@pytest.mark.parametrize("prefix", ["10.0.0.0/31", "10.0.0.7/32"])
def test_the_smallest_prefixes_have_no_reserved_addresses(prefix):
    assert reserved_addresses(network(prefix)) == ()


class AgainstModel(RuleBasedStateMachine):
    """Attach, detach, routes and time in any order; the model tries every address."""

    sandboxes = st.integers(0, 9).map(lambda n: f"s{n}")
    prefixes = st.sampled_from(
        ["10.0.0.0/28", "10.0.0.0/29", "10.0.0.4/30", "10.0.0.8/29", "10.0.0.5/32", "10.0.0.9/32",
         "10.0.0.16/30", "0.0.0.0/0"]
    )  # fmt: skip

    @initialize(prefixes=st.sampled_from([["10.0.0.0/28"], ["10.0.0.0/29", "10.0.0.16/29"]]))
    def start(self, prefixes):
        self.clock = Clock()
        self.book = AddressBook(REST, self.clock)
        self.networks = [network(text) for text in prefixes]
        self.book.set_vpc(Vpc("blue", 100, tuple(self.networks)))
        self.routes = {}
        self.attached = {}
        self.resting = {}

    def kind(self, address):
        covering = [net for net in self.routes if address in net]
        return self.routes[max(covering, key=lambda n: n.prefixlen)] if covering else None

    def free(self, sandbox, address):
        rest = self.resting.get(address)
        return (
            address not in self.attached.values()
            and int(address) not in {r for n in self.networks for r in reserved_addresses(n)}
            and (rest is None or rest[0] == sandbox or rest[1] <= self.clock.now)
        )

    def given(self, address):
        local = RouteKind.LOCAL in self.routes.values()
        return self.kind(address) is (RouteKind.LOCAL if local else None)

    @rule(sandbox=sandboxes)
    def attach(self, sandbox):
        if sandbox in self.attached:
            return
        able = [a for n in self.networks for a in n if self.free(sandbox, a) and self.given(a)]
        if not able:
            with pytest.raises(GeneveError) as full:
                self.book.choose(sandbox)
            assert full.value.code is Code.NO_ADDRESS
            return
        own = [
            (until, a)
            for a, (owner, until) in self.resting.items()
            if owner == sandbox and until > self.clock.now
        ]
        address = self.book.choose(sandbox)
        last = max(own)[1] if own else None
        assert address == (last if last in able else min(able))
        self.taken(sandbox, address)

    @rule(sandbox=sandboxes, number=st.integers(0, 25))
    def attach_to(self, sandbox, number):
        address = IPv4Address("10.0.0.0") + number
        if sandbox in self.attached:
            return
        inside = any(address in net for net in self.networks)
        if inside and self.free(sandbox, address):
            self.book.check(sandbox, address)
            self.taken(sandbox, address)
        else:
            with pytest.raises(GeneveError):
                self.book.check(sandbox, address)

    def taken(self, sandbox, address):
        self.book.take(sandbox, address)
        self.attached[sandbox] = address
        self.resting.pop(address, None)

    @rule(sandbox=sandboxes)
    def detach(self, sandbox):
        if sandbox in self.attached:
            self.clock.now += 1  # no two rests end at one time
            address = self.attached.pop(sandbox)
            self.resting[address] = (sandbox, self.book.give_back(address))

    @rule(prefix=prefixes, kind=st.sampled_from(list(RouteKind)))
    def add_route(self, prefix, kind):
        self.routes[network(prefix)] = kind
        self.book.add_route(route(prefix, kind))

    @rule(prefix=prefixes)
    def remove_route(self, prefix):
        self.routes.pop(network(prefix), None)
        self.book.remove_route(network(prefix))

    @rule(seconds=st.sampled_from([1, 20, 61]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(steps=st.integers(1, 5))
    def look_ahead(self, steps):
        self.book.advance(steps)

    @invariant()
    def the_same_are_in_use(self):
        if hasattr(self, "attached"):
            assert self.book.in_use == {int(a): s for s, a in self.attached.items()}


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
