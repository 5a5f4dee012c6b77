# SPDX-License-Identifier: Apache-2.0
"""Requests that are made as bytes say what they should, read by a codec that others wrote."""

from __future__ import annotations

import struct
import sys
from ipaddress import ip_address

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from geneve_ebpf.host import messages, tc

MAC = bytes.fromhex("024756000001")


def read(codec, request):
    """The request as the codec understands it."""
    header = struct.pack("=IHHII", 16 + len(request.body), request.kind, request.flags, 7, 0)
    message = codec(header + request.body)
    message.decode()
    return message


@pytest.mark.parametrize("text", ["169.254.77.2", "fd67:6e76:77::2"])
def test_an_address_stands_alone_and_is_taken_unasked(text):
    """/32 or /128, and no duplicate address detection."""
    message = read(ifaddrmsg, messages.address(5, ip_address(text)))

    assert (message["index"], message["prefixlen"]) == (5, ip_address(text).max_prefixlen)
    assert message["family"] == (2 if "." in text else 10)
    assert message["flags"] == 0x02
    assert message.get_attr("IFA_LOCAL") == message.get_attr("IFA_ADDRESS") == text


@pytest.mark.parametrize("text", ["169.254.77.1", "fe80::1"])
def test_a_neighbour_is_permanent(text):
    """So it does not count against the table that all namespaces share."""
    message = read(ndmsg, messages.neighbour(5, ip_address(text), MAC))

    assert (message["ifindex"], message["state"]) == (5, 0x80)
    assert (message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")) == (text, MAC.hex(":"))


@pytest.mark.parametrize("text", ["169.254.77.1", "fe80::1"])
def test_everything_goes_by_the_gateway(text):
    """A default route in the main table."""
    message = read(rtmsg, messages.default_route(5, ip_address(text)))

    assert (message["dst_len"], message["table"], message["scope"]) == (0, 254, 0)
    assert (message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF")) == (text, 5)


def test_the_gateway_is_on_the_link():
    """It alone, and nothing beside it."""
    message = read(rtmsg, messages.on_link(5, ip_address("169.254.77.1")))

    assert (message["dst_len"], message["scope"]) == (32, 253)
    assert (message.get_attr("RTA_DST"), message.get_attr("RTA_OIF")) == ("169.254.77.1", 5)


def test_a_veth_pair_has_one_queue_and_an_mtu_on_either_side():
    """Its peer is made where it belongs, with its MAC."""
    request = messages.veth(
        "gnv7", "eth0", mtu=65535, peer_mtu=1450, peer_mac=MAC, peer_namespace=9
    )
    message = read(ifinfmsg, request)
    info = message.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")

    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    assert (message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU")) == ("gnv7", 65535)
    assert (peer.get_attr("IFLA_IFNAME"), peer.get_attr("IFLA_MTU")) == ("eth0", 1450)
    assert peer.get_attr("IFLA_ADDRESS") == MAC.hex(":")
    assert peer.get_attr("IFLA_NET_NS_FD") == 9
    for end in (message, peer):
        assert end.get_attr("IFLA_NUM_TX_QUEUES") == end.get_attr("IFLA_NUM_RX_QUEUES") == 1


@pytest.mark.parametrize(
    ("request_", "flags", "change"),
    [
        (messages.link_up(3), 1, 1),
        (messages.link_arp(3, False), 0x80, 0x80),
        (messages.link_arp(3, True), 0, 0x80),
        (messages.link_mtu(3, 1350), 0, 0),
        (messages.no_link_local(3), 0, 0),
    ],
)
def test_a_link_changes_in_one_thing_only(request_, flags, change):
    """Flags that are not named stay as they are."""
    message = read(ifinfmsg, request_)

    assert (message["index"], message["flags"], message["change"]) == (3, flags, change)


def test_a_link_takes_its_mtu_and_its_way_of_making_addresses():
    """IPv6's link-local address is nobody's to make."""
    assert read(ifinfmsg, messages.link_mtu(3, 1350)).get_attr("IFLA_MTU") == 1350
    assert b"\x05\x00\x08\x00\x01" in messages.no_link_local(3).body


def test_a_notification_names_its_interface():
    """Whatever stands before the name; and none where there is none."""
    head = struct.pack("=BxHiII", 0, 1, 4, 0, 0)
    mtu = struct.pack("=HHI", 8, 4, 1500)
    name = struct.pack("=HH", 4 + 8, 3) + b"uplink0\0"

    assert messages.link_name(head + mtu + name) == "uplink0"
    assert messages.link_name(head + mtu) == ""
    assert messages.link_name(head + struct.pack("=HH", 0, 0)) == ""
    assert messages.link_name(b"") == ""


def test_our_codec_of_tc_does_not_take_over_what_the_one_above_it_knows():
    """In a process that has used both, in whatever order."""
    request = messages.clsact(7, 11, 12)
    read(tcmsg, request)

    message = read(tc._Message, request)

    assert message.get_attr("TCA_INGRESS_BLOCK") == 11
    assert message.get_attr("TCA_EGRESS_BLOCK") == 12


def test_an_interface_joins_two_blocks_with_one_clsact():
    """Its two sides, by the numbers that are given."""
    message = read(tcmsg, messages.clsact(7, 11, 12))
    found = messages.attributes(messages.clsact(7, 11, 12).body, 20)

    assert (message["index"], message["parent"]) == (7, 0xFFFFFFF1)
    assert message.get_attr("TCA_KIND") == "clsact"
    assert [int.from_bytes(found[kind], sys.byteorder) for kind in (13, 14)] == [11, 12]
