# SPDX-License-Identifier: Apache-2.0
"""The data plane in plain Python: what a frame must become, or why it must be dropped.

Written from the RFCs and from docs/fuzzing.md, which has the order of checks;
not from the C, against which tests/fuzz compares it. One subject per file:

| file           | subject                                                       |
|----------------|---------------------------------------------------------------|
| `state.py`     | a node's state, and what came of a frame                      |
| `sums.py`      | Internet checksums (RFC 1071, 1624)                           |
| `packet.py`    | the IP packet inside a frame (RFC 791, 8200)                  |
| `translate.py` | one address for another, with every sum that covers it        |
| `geneve.py`    | the outer headers, made and read (RFC 8926, 768, 6935, 6040)  |
| `arp.py`       | ARP (RFC 826)                                                 |
| `nd.py`        | neighbour discovery, group memberships (RFC 4861, 3810)       |
| `dhcp.py`      | DHCP (RFC 2131)                                               |
| `dhcp6.py`     | DHCP for IPv6 (RFC 8415)                                      |
| `mtu.py`       | too big, MSS, path MTU (RFC 1191, 8201, 4443, 9293)            |
| `sandbox.py`   | what a sandbox sends                                          |
| `uplink.py`    | what comes from the wire                                      |
| `relay.py`     | TCP on its way to a host tap                                  |
"""
