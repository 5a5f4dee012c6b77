# SPDX-License-Identifier: Apache-2.0
"""The values' parsers: what is accepted, and what each bad input is called."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneve_ebpf import model
from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.model import MacAddress, Route, RouteKind, Vpc

BAD_NAMES = [
    "",
    ".",
    "..",
    "../escape",
    "/etc/passwd",
    "-dash",
    ".hidden",
    "_under",
    "Upper",
    "with space",
    "with/slash",
    "tab\t",
    "newline\n",
    "nul\0",
    "ä",
    "a" * 64,
    None,
    7,
    b"bytes",
    ["list"],
]
BAD_VNIS = [0, -1, 1 << 24, 1 << 32, "7", "", None, 7.0, True, False, [7]]
MALFORMED_ADDRESSES = [
    "",
    "10.0.0",
    "10.0.0.256",
    "10.0.0.5.6",
    "10.0.0.05",
    " 10.0.0.5",
    "10.0.0.5\n",
    "10.0.0.5/32",
    "ten",
    None,
    5,
    b"\x0a\x00\x00\x05",
]
MALFORMED_IPV6 = [
    "",
    ":",
    ":::",
    "fd00:1:5",
    "fd00::1::5",
    "fd00::12345",
    "fd00::g",
    "[fd00::5]",
    " fd00::5",
    "fd00::5\n",
    "fd00::5/128",
    "fd00::5%eth0",
    "fe80::1%eth0",
    "fd00::10.0.0.256",
    None,
    5,
    bytes(16),
]
NOT_UNICAST_IPV6 = [
    "::",
    "::1",
    "ff02::1",
    "fe80::1",
    "febf::1",
    "::ffff:10.0.0.5",
    "::FFFF:a00:5",
]
NOT_UNICAST = [
    "0.0.0.0",
    "127.0.0.1",
    "127.255.255.254",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
]
BAD_PREFIXES = [
    "10.1.2.3",  # an address
    "10.0.0.0/255.255.0.0",
    "10.0.0.0/0.0.255.255",
    "10.0.0.0/016",
    "",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0/",
    "/8",
    "10.0.0/8",
    "10.0.0.256/24",
    "10.0.0.0/8/8",
    "10.0.0.0/255.0.255.0",
    "fd00::5/64",
    "fd00::/129",
    "fd00::/064",
    "fd00::",
    "fd00::/ffff::",
    "fe80::%eth0/64",
    "fd00:/16",
    "::ffff:10.0.0.0/104",
    "ten/8",
    None,
    10,
    ("10.0.0.0", 8),
]
BAD_MACS = [
    "",
    "02:00:00:00:00",
    "02:00:00:00:00:00:07",
    "02-00-00-00-00-07",
    "020000000007",
    "02:00:00:00:00:0g",
    "02:00:00:00:00:07\n",
    "00:00:00:00:00:00",
    "01:00:5e:00:00:01",
    "33:33:00:00:00:01",
    "ff:ff:ff:ff:ff:ff",
    None,
    7,
    b"\x02\x00\x00\x00\x00\x07",
]
BAD_MTUS = [1, 575, -1, 65536, 1 << 40, "1500", None, 1500.0, True, False]


def refusals(parse, code, values):
    """Rows of (parser, value, the code it is refused with)."""
    return [pytest.param(parse, value, code, id=f"{code.slug}-{value!r}") for value in values]


@pytest.mark.parametrize(
    ("parse", "value", "code"),
    [
        *refusals(model.parse_name, Code.BAD_NAME, BAD_NAMES),
        *refusals(model.parse_vni, Code.BAD_VNI, BAD_VNIS),
        *refusals(model.parse_address, Code.BAD_ADDRESS, MALFORMED_ADDRESSES + NOT_UNICAST),
        *refusals(model.parse_address, Code.BAD_ADDRESS, MALFORMED_IPV6 + NOT_UNICAST_IPV6),
        *refusals(model.parse_ipv4, Code.BAD_ADDRESS, [*MALFORMED_ADDRESSES, "fd00::5"]),
        *refusals(model.parse_ipv6, Code.BAD_ADDRESS, [*MALFORMED_IPV6, "10.0.0.5"]),
        *refusals(model.parse_prefix, Code.BAD_PREFIX, BAD_PREFIXES),
        *refusals(model.parse_mac, Code.BAD_MAC, BAD_MACS),
        *refusals(model.parse_mtu, Code.BAD_MTU, BAD_MTUS),
    ],
)
def test_bad_input_has_its_code_its_field_and_a_hint(parse, value, code):
    """One line each, so that it can be shown as it is."""
    with pytest.raises(GeneveError) as caught:
        parse(value, "where.it.stood")

    assert caught.value.code is code
    assert caught.value.field == "where.it.stood"
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("parse", "field"),
    [
        (model.parse_name, "name"),
        (model.parse_vni, "vni"),
        (model.parse_address, "address"),
        (model.parse_prefix, "prefix"),
        (model.parse_mac, "mac"),
        (model.parse_mtu, "mtu"),
    ],
)
def test_the_field_is_named_after_what_is_parsed(parse, field):
    """A caller names the field only when its request calls it something else."""
    with pytest.raises(GeneveError) as caught:
        parse(None)

    assert caught.value.field == field


@pytest.mark.parametrize("name", ["a", "0", "blue", "sandbox-1", "a.b_c-d", "9lives", "a" * 63])
def test_a_good_name_is_taken_as_it_is(name):
    """1 to 63 characters that are safe in a path, a label and a log line."""
    assert model.parse_name(name) == name


@given(st.text())
def test_no_accepted_name_leaves_its_directory(text):
    """Whatever is accepted is one path component, and not a dot one."""
    try:
        name = model.parse_name(text)
    except GeneveError:
        return

    assert name == text
    assert "/" not in name
    assert "\0" not in name
    assert name not in ("", ".", "..")


@pytest.mark.parametrize("vni", [1, 4096, (1 << 24) - 1])
def test_a_vni_has_24_bits_and_is_not_zero(vni):
    """The ends of the range belong to it."""
    assert model.parse_vni(vni) == vni


@pytest.mark.parametrize("text", ["10.0.0.5", "192.0.2.1", "169.254.1.1", "1.0.0.0", "223.255.0.9"])
def test_a_unicast_address_is_taken(text):
    """Link-local ones too: what a VPC holds is its owner's matter."""
    assert model.parse_address(text) == IPv4Address(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fd00:1::5", "fd00:1::5"),
        ("FD00:0001:0:0:0:0:0:5", "fd00:1::5"),
        ("fd00:1:0:0:2:0:0:5", "fd00:1::2:0:0:5"),  # the first of two equal runs
        ("fd00:1:2:3:4:5:0:7", "fd00:1:2:3:4:5:0:7"),  # one group of zeros is no run
        ("fd00::10.0.0.5", "fd00::a00:5"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_any_spelling_of_an_ipv6_address_is_taken_and_shown_as_rfc_5952_says(text, shown):
    """One address has one text, wherever it shows."""
    assert str(model.parse_address(text)) == shown
    assert model.parse_ipv6(text) == IPv6Address(shown)


@pytest.mark.parametrize(
    ("text", "hint"), [("fe80::1%eth0", "fe80::1"), ("::ffff:10.0.0.5", "10.0.0.5")]
)
def test_what_was_meant_is_offered(text, hint):
    """A zone and a mapped address have one likely meaning each."""
    with pytest.raises(GeneveError) as caught:
        model.parse_address(text)

    assert caught.value.hint.endswith(hint)


def test_a_link_local_address_is_taken_where_a_gateway_is_named():
    """It is the one place where the link is known."""
    assert model.parse_link_local("FE80::0:1", "gateway6") == IPv6Address("fe80::1")
    with pytest.raises(GeneveError) as caught:
        model.parse_link_local("fd00::1", "gateway6")
    assert caught.value.code is Code.BAD_ADDRESS
    assert caught.value.field == "gateway6"


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("fd00:1::/48", "fd00:1::/48"),
        ("FD00:1:0::/48", "fd00:1::/48"),
        ("fd00::5/128", "fd00::5/128"),
        ("::/0", "::/0"),
    ],
)
def test_an_ipv6_prefix_is_taken(text, prefix):
    """In any spelling; one address is a prefix as well."""
    assert model.parse_prefix(text) == IPv6Network(prefix)
    assert str(model.parse_prefix(text)) == prefix


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/32", "10.1.2.3/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_prefix_is_taken(text, prefix):
    """An address and a length; one address is a prefix as well."""
    assert model.parse_prefix(text) == IPv4Network(prefix)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.5/24", "10.0.0.0/24"),
        ("fd00::5/64", "fd00::/64"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ],
)
def test_host_bits_in_a_prefix_are_named_with_the_mend(text, meant):
    """The likeliest meaning is offered, not assumed."""
    with pytest.raises(GeneveError) as caught:
        model.parse_prefix(text)

    assert caught.value.code is Code.BAD_PREFIX
    assert meant in caught.value.hint


@pytest.mark.parametrize("text", ["02:00:00:00:00:07", "aA:bB:cC:dD:eE:fF"])
def test_a_unicast_mac_is_taken_and_printed_in_lower_case(text):
    """Six octets, either case."""
    assert str(model.parse_mac(text)) == text.lower()


@pytest.mark.parametrize("mtu", [0, 576, 1500, 9000, 65535])
def test_an_mtu_is_taken(mtu):
    """0 is not a size: it leaves the choice to the kernel's route."""
    assert model.parse_mtu(mtu) == mtu


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_endpoints_of_a_vpc_have_macs_of_their_own(one, other):
    """As unique as the address, unicast and locally administered."""
    mac = model.endpoint_mac(one)

    assert model.parse_mac(str(mac)) == mac
    assert mac.octets[0] & 0b11 == 0b10
    assert (mac == model.endpoint_mac(other)) == (one == other)


def test_an_ipv6_endpoints_mac_is_made_of_its_address():
    """The same on every node, locally administered, and distinct within any /96."""
    first = IPv6Address("fd00:1::")
    macs = [model.endpoint_mac(first + number) for number in range(2000)]

    assert str(model.endpoint_mac(IPv6Address("fd00:1::5"))) == "02:46:cb:96:7a:eb"
    assert all(str(mac).startswith("02:46:") for mac in macs)
    assert len(set(macs)) == len(macs)


@given(st.ip_addresses())
def test_an_address_reads_as_it_prints(address):
    """What one node shows, another takes."""
    try:
        parsed = model.parse_address(str(address))
    except GeneveError:
        return

    assert parsed == address == ip_address(str(parsed))


def test_node_settings_pass_through_json_whole():
    """It is how a child process gets them."""
    guest = model.Guest(
        address6=IPv6Address("fd12::2"),
        gateway6=IPv6Address("fe80::9"),
        dns=(IPv6Address("2620:fe::fe"), IPv4Address("9.9.9.9")),
    )
    settings = model.NodeSettings("n1", IPv4Address("192.0.2.1"), ("eth1",), guest=guest)

    assert model.NodeSettings.from_json(settings.as_json()) == settings


def test_the_guests_addresses_fit_together():
    """The same in every slot: two hosts of one small network, two MACs, none an endpoint's."""
    guest = model.Guest()

    assert {guest.address, guest.gateway} <= set(guest.network.hosts())
    assert guest.address != guest.gateway
    assert guest.mac != guest.gateway_mac
    assert guest.gateway6.is_link_local
    assert model.parse_ipv6(str(guest.address6)) == guest.address6
    for mac in (guest.mac, guest.gateway_mac):
        assert model.parse_mac(str(mac)) == mac


def test_values_are_compared_by_what_they_hold():
    """State is diffed by comparing values, and values are kept in sets."""
    vpc = Vpc("blue", 7, (IPv4Network("10.0.0.0/16"),))
    same = Vpc("blue", 7, (IPv4Network("10.0.0.0/16"),))
    route = Route("blue", IPv4Network("10.0.1.0/24"), RouteKind.BLACKHOLE)

    assert {vpc, same} == {vpc}
    assert route != Route("blue", IPv4Network("10.0.1.0/24"), RouteKind.LOCAL)
    with pytest.raises(AttributeError):
        vpc.vni = 8  # type: ignore[misc]
    assert MacAddress(b"\x02\0\0\0\0\x07") == model.parse_mac("02:00:00:00:00:07")
