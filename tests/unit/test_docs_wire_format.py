# SPDX-License-Identifier: Apache-2.0
"""docs/wire-format.md: every statement is shown by a test that exists, or says why not."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from geneve_ebpf import abi
from tests.packets import ALICE, NODE, NODE6, PEER, PEER6, REMOTE, UDP, in_vpc, on_wire

TESTS = Path(__file__).resolve().parent.parent
PAGE = TESTS.parent / "docs" / "wire-format.md"
HEAD = ["Statement", "Level", "Section", "What we do", "Shown by"]
LEVELS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "RECOMMENDED", "MAY", "OPTIONAL"}


def tables() -> list[list[list[str]]]:
    """Each table of the page as rows of cells, its head first."""
    found: list[list[list[str]]] = []
    inside = False
    for line in PAGE.read_text().splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not all(re.fullmatch("-+", cell) for cell in cells):
                found[-1].append(cells)
        inside = line.startswith("|")
    return found


def statements() -> list[list[str]]:
    return [row for table in tables() if table[0] == HEAD for row in table[1:]]


@cache
def functions_of(name: str) -> frozenset[str]:
    """The test functions of the files of that name below tests/."""
    return frozenset(
        node.name
        for path in TESTS.rglob(name)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_there_are_statements_of_each_rfc():
    """Otherwise nothing below would be checked."""
    text = PAGE.read_text()

    assert len(statements()) > 90
    for rfc in ("RFC 8926: ", "RFC 6040: ", "RFC 6935 and 6936: "):
        assert f"## {rfc}" in text


@pytest.mark.parametrize("row", statements(), ids=lambda row: row[0][:60])
def test_a_statement_has_a_test_or_a_reason(row):
    """`file.py::test_name`, all of which exist; or a deviation, or not applicable, with why."""
    assert len(row) == len(HEAD)
    statement, level, section, doing, shown = row
    assert level in LEVELS
    assert re.fullmatch(r"(\d{4}: )?\d+(\.\d+)*((, (\d{4}: )?| to )\d+(\.\d+)*)*", section)
    assert statement
    assert doing

    kind, colon, reason = shown.partition(": ")
    if kind in ("deviation", "not applicable"):
        assert colon
        assert len(reason) > 15
        return
    for one in shown.split(", "):
        found = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", one)
        assert found, one
        assert found[2] in functions_of(found[1]), one


def test_statements_stand_once():
    """Two rows of one statement would contradict each other one day."""
    names = [row[0] for row in statements()]

    assert len(set(names)) == len(names)


def fields() -> list[tuple[str, dict[int, int], int]]:
    """The table of fields: name, offset by underlay family, bytes."""
    (table,) = [table for table in tables() if table[0][0] == "Field"]
    return [
        (
            name,
            {family: int(at) for family, at in ((4, four), (6, six)) if at != "-"},
            int(size),
        )
        for name, four, six, size, _ in table[1:]
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_fields_follow_each_other_without_a_gap(family):
    """To the inner packet, which begins the tunnel's overhead behind the Ethernet header."""
    at = 0
    for name, offsets, size in fields():
        if family in offsets:
            assert offsets[family] == at, name
            at += size

    assert at == 14 + abi.OVERHEAD[family]


@pytest.mark.parametrize(("family", "ends"), [(4, (NODE, PEER)), (6, (NODE6, PEER6))])
def test_fields_are_where_a_frame_has_them(family, ends):
    """A frame of scapy's, every field of which is another number."""
    frame = bytes(
        on_wire(
            in_vpc(UDP(), ALICE, REMOTE, eth_src="02:00:00:00:00:0a", eth_dst="02:00:00:00:00:0b"),
            src=ends[0],
            dst=ends[1],
            sport=0x1234,
            udp={"chksum": 0x5678},
            vni=0xABCDEF,
        )
    )
    expected = {
        "outer Ethertype": b"\x08\x00" if family == 4 else b"\x86\xdd",
        "UDP source port": b"\x12\x34",
        "UDP destination port": (6081).to_bytes(2, "big"),
        "UDP checksum": b"\x56\x78",
        "Geneve protocol type": b"\x65\x58",
        "Geneve VNI": b"\xab\xcd\xef",
        "inner source MAC": bytes.fromhex("02000000000a"),
        "inner destination MAC": bytes.fromhex("02000000000b"),
        "inner Ethertype": b"\x08\x00",
        "IPv4 TTL": b"\x40",
        "IPv6 hop limit": b"\x40",
        "IPv4 flags, fragment offset": b"\x40\x00",
        "IPv6 next header": b"\x11",
        "IPv4 protocol": b"\x11",
    }

    where = {name: (offsets[family], size) for name, offsets, size in fields() if family in offsets}
    for name, value in expected.items():
        if name in where:
            at, size = where[name]
            assert frame[at : at + size] == value, name
