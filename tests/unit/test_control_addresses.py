# SPDX-License-Identifier: Apache-2.0
"""Which addresses are free, against a plain model that looks at every address."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from geneve_ebpf.control.address_book import AddressBook
from geneve_ebpf.control.addresses import reserved_addresses
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import Route, RouteKind, Vpc

REST = 60.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def network(text):
    return ip_network(text)


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


def chosen(book, sandbox):
    """What the book gives a sandbox that asks for nothing, IPv4 first."""
    return [address for address in book.choose(sandbox) if address is not None]


def attach(book, sandbox, address=None):
    addresses = chosen(book, sandbox) if address is None else [ip_address(address)]
    for one in addresses:
        book.check(sandbox, one)
        book.take(sandbox, one)
    return " ".join(map(str, addresses))


def refusal(book, sandbox, address):
    with pytest.raises(GeneveError) as refused:
        book.check(sandbox, ip_address(address))
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
    book.give_back(ip_address("10.0.0.2"))

    assert refusal(book, "b", "10.0.0.2") is Code.ADDRESS_RESTING
    assert attach(book, "b") == "10.0.0.3"
    clock.now += REST + 1
    assert attach(book, "c") == "10.0.0.2"


def test_however_many_have_rested_all_of_them_are_given_again(book, clock):
    """An attach takes note of a few of them, and of all where it would else have none."""
    given = [attach(book, f"s{i}") for i in range(254)]
    for address in given:
        book.give_back(ip_address(address))
    clock.now += REST + 1

    assert attach(book, "first") == "10.0.0.2"
    again = [attach(book, f"t{i}") for i in range(253)]
    assert sorted(again) == sorted(given[1:])
    with pytest.raises(GeneveError):
        book.choose("late")


def test_the_same_sandbox_has_its_address_back_at_once(book):
    attach(book, "a")
    attach(book, "b")
    book.give_back(ip_address("10.0.0.3"))

    assert attach(book, "b") == "10.0.0.3"


def test_a_rest_begins_anew_with_each_detach(book, clock):
    attach(book, "a")
    book.give_back(ip_address("10.0.0.2"))
    clock.now += REST / 2
    attach(book, "a")
    book.give_back(ip_address("10.0.0.2"))
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
    assert attach(book, "b") == "10.0.0.65"


@pytest.mark.parametrize(
    ("prefix", "block", "given", "left_out"),
    [
        ("10.0.0.0/16", "10.0.7.0/30", ["10.0.7.1", "10.0.7.2"], ["10.0.7.0", "10.0.7.3"]),
        ("10.0.0.0/16", "10.0.7.0/31", ["10.0.7.0", "10.0.7.1"], []),
        ("10.0.0.0/16", "10.0.7.9/32", ["10.0.7.9"], []),
        ("fd00::/48", "fd00::7:0/126", ["fd00::7:1", "fd00::7:2", "fd00::7:3"], ["fd00::7:0"]),
        ("fd00::/48", "fd00::7:0/127", ["fd00::7:0", "fd00::7:1"], []),
        ("fd00::/48", "fd00::7:9/128", ["fd00::7:9"], []),
    ],
)
def test_the_ends_of_a_block_are_given_only_to_who_asks(clock, prefix, block, given, left_out):
    """A guest's network software may take them for the network's own or for everybody's."""
    book = AddressBook(REST, clock)
    book.set_vpc(Vpc("blue", 100, (network(prefix),)), [route(block, RouteKind.LOCAL)])

    assert [attach(book, f"s{number}") for number in range(len(given))] == given
    with pytest.raises(GeneveError) as full:
        book.choose("late")
    assert full.value.code is Code.NO_ADDRESS
    for number, address in enumerate(left_out):
        assert attach(book, f"asked{number}", address) == address


def test_a_block_within_a_block_leaves_the_rest_of_it(book):
    """Also one that begins where the wider one does."""
    book.add_route(route("10.0.0.0/24", RouteKind.LOCAL))
    book.add_route(route("10.0.0.0/30", RouteKind.LOCAL))

    assert [attach(book, f"s{number}") for number in range(3)] == [
        "10.0.0.2", "10.0.0.4", "10.0.0.5"
    ]  # fmt: skip


@pytest.fixture
def dual(clock):
    book = AddressBook(REST, clock)
    prefixes = ("10.0.0.0/24", "fd00:1::/48")
    book.set_vpc(Vpc("blue", 100, tuple(map(network, prefixes))))
    return book


def test_a_sandbox_gets_one_address_of_each_family(dual):
    """Without local routes both prefixes are this node's."""
    assert attach(dual, "a") == "10.0.0.2 fd00:1::1"
    assert attach(dual, "b") == "10.0.0.3 fd00:1::2"
    assert dual.sandboxes() == {"a", "b"}
    assert dual.owner(ip_address("fd00:1::2")) == "b"


def test_with_a_local_block_of_one_family_the_other_has_none_here(dual):
    """Its addresses may be another node's: nobody says that they are this one's."""
    dual.add_route(route("fd00:1:0:7::/64", RouteKind.LOCAL))

    assert attach(dual, "a") == "fd00:1:0:7::1"
    dual.add_route(route("10.0.0.128/25", RouteKind.LOCAL))
    assert attach(dual, "b") == "10.0.0.129 fd00:1:0:7::2"
    dual.remove_route(network("fd00:1:0:7::/64"))
    assert attach(dual, "c") == "10.0.0.130"
    dual.remove_route(network("10.0.0.128/25"))
    assert attach(dual, "d") == "10.0.0.2 fd00:1::1"


def test_both_addresses_rest_and_come_back_to_their_sandbox(dual, clock):
    attach(dual, "a")
    attach(dual, "b")
    for address in ("10.0.0.3", "fd00:1::2"):
        dual.give_back(ip_address(address))

    assert refusal(dual, "c", "fd00:1::2") is Code.ADDRESS_RESTING
    assert len(dual.resting()) == 2
    assert attach(dual, "c") == "10.0.0.4 fd00:1::3"
    assert attach(dual, "b") == "10.0.0.3 fd00:1::2"
    dual.give_back(ip_address("fd00:1::1"))
    clock.now += REST + 1
    assert attach(dual, "d") == "10.0.0.5 fd00:1::1"


def test_what_was_taken_in_vain_is_as_it_was_before(dual, clock):
    """Free where it was free; resting for its last owner, until the same time, where it rested."""
    attach(dual, "a")
    for address in ("10.0.0.2", "fd00:1::1"):
        dual.give_back(ip_address(address))
    clock.now += REST / 2
    before = dual.resting()

    row = dual.take_some(["a", "b"])
    assert len(row) == 2
    dual.untake(address for both in row for address in both)

    assert dual.resting() == before
    assert not dual.sandboxes()
    assert refusal(dual, "b", "10.0.0.2") is Code.ADDRESS_RESTING
    assert attach(dual, "b") == "10.0.0.3 fd00:1::2"
    assert attach(dual, "a") == "10.0.0.2 fd00:1::1"


def test_one_family_used_up_is_said_and_not_hidden(clock):
    """Half a sandbox would be found out much later."""
    book = AddressBook(REST, clock)
    book.set_vpc(Vpc("blue", 100, (network("10.0.0.0/30"), network("fd00::/48"))))
    attach(book, "a")

    with pytest.raises(GeneveError) as full:
        book.choose("b")
    assert full.value.code is Code.NO_ADDRESS


@pytest.mark.parametrize(
    ("address", "code", "field"),
    [
        ("fd00:2::1", Code.ADDRESS_OUTSIDE_VPC, "address6"),
        ("fd00:1::", Code.ADDRESS_RESERVED, "address6"),
        ("fd00:1::9", Code.ADDRESS_IN_USE, "address6"),
        ("10.0.1.1", Code.ADDRESS_OUTSIDE_VPC, "address"),
    ],
)
def test_a_refused_address_names_its_field(dual, address, code, field):
    attach(dual, "x", "fd00:1::9")

    with pytest.raises(GeneveError) as refused:
        dual.check("y", ip_address(address))

    assert (refused.value.code, refused.value.field) == (code, field)


def test_an_ipv6_block_is_never_walked_through(clock):
    """Neither what is routed elsewhere nor what is free costs a step an address."""
    book = AddressBook(REST, clock)
    routes = [
        route("fd00::/32", RouteKind.LOCAL),
        route("fd00::/64"),
        route("fd00:0:1::/48", RouteKind.BLACKHOLE),
    ]
    book.set_vpc(Vpc("blue", 100, (network("fd00::/16"),)), routes)

    assert book.v6.advance(5)
    assert attach(book, "a") == "fd00:0:0:1::"
    assert attach(book, "b", "fd00:0:ffff::5") == "fd00:0:ffff::5"
    assert attach(book, "c") == "fd00:0:0:1::1"


def test_a_hundred_thousand_host_routes_are_passed_in_steps(clock):
    """Work on the way to the next free address can be done ahead, a little at a time."""
    book = AddressBook(REST, clock)
    first = ip_address("10.0.0.2")
    routes = (Route("blue", IPv4Network(first + i), RouteKind.REMOTE) for i in range(100_000))
    book.set_vpc(Vpc("blue", 100, (network("10.0.0.0/8"),)), routes)

    rounds = 0
    while not book.v4.advance(1000):
        rounds += 1

    assert 99 <= rounds <= 101
    assert chosen(book, "a") == [first + 100_000]


def test_a_wide_remote_route_is_passed_in_one_step(clock):
    book = AddressBook(REST, clock)
    routes = [route("10.0.0.0/9"), route("10.200.0.0/16")]
    book.set_vpc(Vpc("blue", 100, (network("10.0.0.0/8"),)), routes)

    assert book.v4.advance(10)
    assert attach(book, "a") == "10.128.0.0"


@pytest.mark.parametrize("prefix", ["10.0.0.0/31", "10.0.0.7/32", "fd00::/127", "fd00::7/128"])
def test_the_smallest_prefixes_have_no_reserved_addresses(prefix):
    assert reserved_addresses(network(prefix)) == ()


# First address -> bits of the rest.
ROUTED = [(0, 4), (0, 3), (4, 2), (8, 3), (5, 0), (9, 0), (16, 2), None]


class AgainstModel(RuleBasedStateMachine):
    """Attach, detach, routes and time in any order; the model tries every address."""

    first = ip_address("10.0.0.0")
    sandboxes = st.integers(0, 9).map(lambda n: f"s{n}")
    prefixes = st.sampled_from(ROUTED)

    def network(self, span):
        """A small network by its first number and bits; None is all of the family."""
        if span is None:
            return ip_network((self.first, 0), strict=False)
        return ip_network((self.first + span[0], self.first.max_prefixlen - span[1]))

    @initialize(prefixes=st.sampled_from([[(0, 4)], [(0, 3), (16, 3)]]))
    def start(self, prefixes):
        self.clock = Clock()
        self.book = AddressBook(REST, self.clock)
        self.networks = [self.network(span) for span in prefixes]
        self.book.set_vpc(Vpc("blue", 100, tuple(self.networks)))
        self.routes = {}
        self.attached = {}
        self.resting = {}

    def longest(self, address):
        covering = [net for net in self.routes if address in net]
        return max(covering, key=lambda n: n.prefixlen) if covering else None

    def free(self, sandbox, address):
        rest = self.resting.get(address)
        return (
            address not in self.attached.values()
            and int(address) not in {r for n in self.networks for r in reserved_addresses(n)}
            and (rest is None or rest[0] == sandbox or rest[1] <= self.clock.now)
        )

    def given(self, address):
        local = RouteKind.LOCAL in self.routes.values()
        block = self.longest(address)
        if not local or block is None:
            return not local and block is None
        ends = [block[0], block[-1]] if address.version == 4 else [block[0]]
        end = address in ends and block.num_addresses > 2
        return self.routes[block] is RouteKind.LOCAL and not end

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
        (address,) = chosen(self.book, sandbox)
        last = max(own)[1] if own else None
        assert address == (last if last in able else min(able))
        self.taken(sandbox, address)

    @rule(sandbox=sandboxes, number=st.integers(0, 25))
    def attach_to(self, sandbox, number):
        address = self.first + number
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

    @rule(sandboxes=st.lists(sandboxes, unique=True, max_size=4))
    def attach_some_in_vain(self, sandboxes):
        row = self.book.take_some([one for one in sandboxes if one not in self.attached])
        self.book.untake(one for both in row for one in both if one is not None)

    @rule(sandbox=sandboxes)
    def detach(self, sandbox):
        if sandbox in self.attached:
            self.clock.now += 1  # no two rests end at one time
            address = self.attached.pop(sandbox)
            self.resting[address] = (sandbox, self.book.give_back(address))

    @rule(prefix=prefixes, kind=st.sampled_from(list(RouteKind)))
    def add_route(self, prefix, kind):
        self.routes[self.network(prefix)] = kind
        self.book.add_route(Route("blue", self.network(prefix), kind))

    @rule(prefix=prefixes)
    def remove_route(self, prefix):
        self.routes.pop(self.network(prefix), None)
        self.book.remove_route(self.network(prefix))

    @rule(seconds=st.sampled_from([1, 20, 61]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(steps=st.integers(1, 5))
    def look_ahead(self, steps):
        self.book.advance(steps)

    @invariant()
    def the_same_are_in_use(self):
        if hasattr(self, "attached"):
            assert dict(self.book.in_use()) == self.attached


class AgainstModelIpv6(AgainstModel):
    """The same with IPv6."""

    first = ip_address("fd00:1::")


TestAgainstModel = AgainstModel.TestCase
TestAgainstModelIpv6 = AgainstModelIpv6.TestCase
TestAgainstModel.settings = TestAgainstModelIpv6.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)


@pytest.mark.parametrize("dual_stack", [False, True])
def test_some_are_given_as_one_after_another_would_be(clock, dual_stack):
    """Over the ends of blocks, past what is taken, rests or was given back, until there is none."""
    prefixes = tuple(map(network, ("10.0.0.0/28", "10.0.1.0/29")))
    if dual_stack:
        prefixes += (network("fd00:1::/124"),)
    rows, singly = (AddressBook(REST, clock) for _ in range(2))
    for book in (rows, singly):
        book.set_vpc(Vpc("blue", 100, prefixes))
        book.add_route(route("10.0.0.4/31", RouteKind.BLACKHOLE))
        for sandbox, text in (("held", "10.0.0.7"), ("back", "10.0.0.2"), ("rests", "10.0.0.3")):
            book.take(sandbox, ip_address(text))
        book.give_back(ip_address("10.0.0.2"))
    clock.now += 61
    for book in (rows, singly):
        book.give_back(ip_address("10.0.0.3"))

    names = [f"s{number}" for number in range(8)] + ["rests"] + [f"t{n}" for n in range(20)]
    expected = []
    for name in names:
        try:
            chosen = singly.choose(name)
        except GeneveError:
            break
        for address in filter(None, chosen):
            singly.take(name, address)
        expected.append(chosen)

    given = rows.take_some(names[:5]) + rows.take_some(names[5:])

    assert given == expected
    assert len(given) < len(names)
    assert sorted(rows.in_use(), key=str) == sorted(singly.in_use(), key=str)
