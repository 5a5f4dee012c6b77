# SPDX-License-Identifier: Apache-2.0
"""ARP (RFC 826) as the programs answer it, and what they refuse to answer.

Nobody is told of his own address and no probe is answered (RFC 5227): either
would look like a duplicate.
"""

from __future__ import annotations

from tests.model.state import ZERO4, Binding, Config, Drop, guest_address

LENGTH = 28
_QUESTION = bytes.fromhex("0001 0800 06 04 0001")
_ANSWER = bytes.fromhex("0001 0800 06 04 0002")


def is_question(arp: bytes) -> bool:
    """A request of IPv4 over Ethernet by somebody who has an address, for another's."""
    return arp[:8] == _QUESTION and arp[14:18] not in (ZERO4, arp[24:28])


def answer(arp: bytes, mac: bytes) -> bytes:
    """The target has this MAC, said to the one that asked."""
    return _ANSWER + mac + arp[24:28] + arp[8:18]


def answer_sandbox(config: Config, binding: Binding, frame: bytes) -> bytes:
    """The frame that goes back to a sandbox. Raises Drop."""
    arp = frame[14 : 14 + LENGTH]
    if len(arp) < LENGTH:
        raise Drop("short_frame")
    if not is_question(arp) or arp[24:28] != config.gateway:
        raise Drop("arp_refused")
    if arp[8:14] != config.guest_mac:
        raise Drop("spoofed_mac")
    if arp[14:18] != guest_address(config, binding, 4):
        raise Drop("spoofed_address")
    ethernet = config.guest_mac + config.gateway_mac + frame[12:14]
    return ethernet + answer(arp, config.gateway_mac) + frame[14 + LENGTH :]
