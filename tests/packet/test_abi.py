# SPDX-License-Identifier: Apache-2.0
"""C and Python mean the same bytes: mirrors against what the kernel has loaded."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from geneve_ebpf import abi
from geneve_ebpf.dataplane import config
from geneve_ebpf.loader import bpf
from geneve_ebpf.model import RouteKind, SlotState
from tests import btf, programs

HASH, ARRAY, PERCPU_ARRAY, LPM_TRIE = 1, 2, 6, 11
NO_PREALLOC, MMAPABLE = 1, 1 << 10

# Map -> (type, entries, flags)
SHAPES = {
    "node_config": (ARRAY, 1, 0),
    "node_state": (ARRAY, 1, MMAPABLE),
    "slot_by_ifindex": (HASH, "MAX_SLOTS", NO_PREALLOC),
    "bindings": (ARRAY, "MAX_SLOTS", MMAPABLE),
    "endpoints": (HASH, "MAX_ENDPOINTS", 0),
    "routes_exact": (HASH, "MAX_ROUTES", NO_PREALLOC),
    "routes_lpm": (LPM_TRIE, "MAX_ROUTES", NO_PREALLOC),
    "nexthops": (HASH, "MAX_NEXTHOPS", NO_PREALLOC),
    "vteps": (HASH, "MAX_VTEPS", NO_PREALLOC),
    "drop_counts": (PERCPU_ARRAY, len(abi.drop_reasons()) * len(abi.Direction), 0),
    "event_counts": (PERCPU_ARRAY, len(abi.event_kinds()), 0),
    "slot_counters": (PERCPU_ARRAY, "MAX_SLOTS", 0),
    "too_big_limits": (ARRAY, "MAX_SLOTS", 0),
    "scratch_row": (PERCPU_ARRAY, 1, 0),
    "vpc_counters": (HASH, "MAX_VPCS", NO_PREALLOC),
}


@pytest.fixture(scope="module")
def infos(node: programs.Node) -> dict[str, bpf.MapInfo]:
    """What the kernel says of each pinned map."""
    found = {}
    for name in abi.MAPS:
        fd = bpf.open_pin(node.pins.map(name))
        found[name] = bpf.map_info(fd)
        os.close(fd)
    return found


@pytest.fixture(scope="module")
def c_types(infos: dict[str, bpf.MapInfo]) -> dict[str, tuple[object, object]]:
    """C types of each map's key and value."""
    found = {}
    for name, info in infos.items():
        types = btf.Btf(info.btf_id)
        found[name] = (types.type(info.btf_key_type), types.type(info.btf_value_type))
    return found


def c_structs(c_types: dict[str, tuple[object, object]]) -> dict[str, btf.Struct]:
    sides = [side for pair in c_types.values() for side in pair]
    return {side.name: side for side in sides if isinstance(side, btf.Struct)}


@pytest.mark.parametrize("c_name", abi.MIRRORS)
def test_mirror_has_the_layout_of_the_c_struct(c_name, c_types):
    """Size, field names, order and offsets are those that clang chose."""
    mirror = abi.MIRRORS[c_name]
    if c_name == "traffic":  # also a field of slot_counters
        assert c_types["drop_counts"][1].name == "traffic"

    c = c_structs(c_types)[c_name]

    assert ctypes.sizeof(mirror) == c.size
    assert tuple((name, getattr(mirror, name).offset) for name, *_ in mirror._fields_) == c.fields


def test_every_struct_of_a_map_has_a_mirror(c_types):
    """A new struct cannot come in without Python's half."""
    assert c_structs(c_types).keys() == abi.MIRRORS.keys()


@pytest.mark.parametrize("name", abi.MAPS)
def test_map_holds_the_types_that_python_uses(name, c_types, infos):
    """Key and value are the mirrored structs, or plain 32-bit numbers."""
    c_name_of = {mirror: c_name for c_name, mirror in abi.MIRRORS.items()}

    for side, mirror in zip(c_types[name], abi.MAPS[name], strict=True):
        if mirror is abi.Key32:
            assert side in ("__u32", "unsigned int")
        elif mirror is abi.Key64:
            assert side in ("__u64", "unsigned long long")
        else:
            assert isinstance(side, btf.Struct)
            assert side.name == c_name_of[mirror]
    assert (infos[name].key_size, infos[name].value_size) == tuple(
        ctypes.sizeof(mirror) for mirror in abi.MAPS[name]
    )


@pytest.mark.parametrize("name", abi.MAPS)
def test_map_has_the_shape_that_the_header_says(name, infos):
    """Type, flags and room; the tables of counts have a row for every reason and event."""
    kind, entries, flags = SHAPES[name]
    if isinstance(entries, str):
        entries = abi.constant(entries)

    assert (infos[name].type, infos[name].max_entries, infos[name].flags) == (kind, entries, flags)


def test_every_pinned_map_is_known_to_python(node):
    """No map is made that nobody opens, and no name is cut off by the kernel (15 characters)."""
    pinned = {path.name for path in node.pins.directory.iterdir()}
    others = tuple(f"{name}-" for name in (*abi.PROGRAMS, "uplink", "jumps"))
    maps = {name for name in pinned if not name.startswith(others)}

    assert maps == abi.MAPS.keys()
    assert max(len(name) for name in maps) <= 15


@pytest.mark.parametrize("name", abi.MAPS)
def test_map_keeps_its_whole_name_in_the_kernel(name, infos):
    """What `bpftool map` shows is the name in our sources."""
    assert infos[name].name == name


@pytest.mark.parametrize(
    "dns", [(), ("2620:fe::fe", "9.9.9.9"), ("9.9.9.9", "2620:fe::9", "9.9.9.10", "2620:fe::fe")]
)
def test_configuration_is_read_back_as_it_was_asked_for(node: programs.Node, dns):
    """Or each start would take it for changed. DNS servers of both families, in any order."""
    guest = replace(node.settings.guest, dns=tuple(map(ip_address, dns)))
    wanted = config.Config.of(replace(node.settings, guest=guest))

    with node.configured():
        config.write_config(node.pins, wanted, node.uplink)
        found = config.read_config(node.pins)

    assert found == wanted
    assert {str(server) for server in found.dns} == set(dns)


def enumerators(name: str) -> dict[str, int]:
    """Members of an enum of geneve_abi.h that is written out."""
    text = re.sub(r"/\*.*?\*/", "", (abi.bpf_directory() / "geneve_abi.h").read_text(), flags=re.S)
    body = re.search(rf"enum {name} {{(.*?)}}", text, re.S)
    assert body is not None
    found: dict[str, int] = {}
    for part in body[1].split(","):
        if part.strip():
            member, _, number = (piece.strip() for piece in part.partition("="))
            found[member] = int(number) if number else max(found.values(), default=-1) + 1
    return found


def test_slot_states_have_the_numbers_of_the_header():
    """They are stored in the bindings map."""
    assert enumerators("slot_state") == {f"SLOT_{s.name}": s.value for s in SlotState}


def test_directions_are_in_the_order_of_the_header():
    """The row of a drop is reason * directions + direction."""
    expected = {f"DIRECTION_{d.name}": number for number, d in enumerate(abi.Direction)}

    assert enumerators("direction") == {**expected, "DIRECTIONS": len(abi.Direction)}


def test_route_kinds_survive_the_map(node):
    """Each kind is read back as it was written, under the number of the header."""
    numbers = enumerators("route_kind")
    stored = {prefix: route for vni, route in node.plane.routes() if (prefix := str(route.prefix))}

    assert numbers.keys() == {f"ROUTE_{kind.name}" for kind in RouteKind}
    assert stored["10.0.1.0/24"].kind is RouteKind.LOCAL
    assert stored["10.66.0.0/16"].kind is RouteKind.BLACKHOLE
    assert stored["10.0.2.0/24"].kind is RouteKind.REMOTE


def test_name_of_a_sandbox_fits_its_field():
    """63 characters and a zero, as the model allows."""
    assert abi.Binding.sandbox.size == abi.constant("SANDBOX_NAME_SIZE") == 64


def test_overhead_is_what_the_program_adds(node):
    """The slots' MTU is the uplink's less the outer headers."""
    assert node.plane.mtu == 1500 - abi.OVERHEAD[4]


# -- drop reasons and events

DOCS = Path(__file__).parents[2] / "docs" / "drop-reasons.md"
CLASSES = {"invalid", "policy", "unreachable", "resource"}
ROW = re.compile(r"^\| `(\w+)` \|(.*)\|$", re.MULTILINE)


def table_after(heading: str) -> list[list[str]]:
    """Rows of the table below a heading of docs/drop-reasons.md, cells stripped."""
    section = DOCS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = ROW.findall(section)
    return [[slug, *(cell.strip() for cell in rest.split("|"))] for slug, rest in rows]


def used_in(direction: str) -> set[str]:
    """Reasons that a direction's programs name, with the headers that all share."""
    root = abi.bpf_directory()
    rx = {name for name in abi.PROGRAMS if name.startswith(("uplink_", "sandbox_guard"))}
    own = {"tx": set(abi.PROGRAMS) - rx, "rx": rx}[direction]
    texts = [(root / f"{name}.bpf.c").read_text() for name in own]
    texts += [path.read_text() for path in root.glob("lib/*.h")]
    return {name.lower() for text in texts for name in re.findall(r"\bDROP_([A-Z_0-9]+)\b", text)}


def test_reasons_are_well_formed():
    """Slugs are unique, each class is one of four, each sentence one line without a full stop."""
    reasons = abi.drop_reasons()

    assert len({reason.slug for reason in reasons}) == len(reasons)
    assert {reason.drop_class for reason in reasons} <= CLASSES
    assert [r.slug for r in reasons if not r.text or r.text.endswith(".") or "\n" in r.text] == []


def test_documented_reasons_are_those_of_the_header():
    """Slug, class and sentence of docs/drop-reasons.md, in the header's order."""
    documented = [(row[0], row[1], row[3]) for row in table_after("Drops")]

    assert documented == [(r.slug, r.drop_class, r.text) for r in abi.drop_reasons()[1:]]


def test_documented_directions_are_those_of_the_programs():
    """A reason is documented for a direction only if that program's sources name it."""
    wrong = [
        (row[0], direction)
        for row in table_after("Drops")
        for direction in row[2].split(", ")
        if row[0] not in used_in(direction)
    ]

    assert wrong == []


def test_every_reason_is_used_by_a_program():
    """No row stays 0 for ever."""
    used = used_in("tx") | used_in("rx")

    assert [r.slug for r in abi.drop_reasons()[1:] if r.slug not in used] == []


def test_every_documented_row_says_what_to_do():
    """An operator reads the table to act."""
    assert [row[0] for row in table_after("Drops") + table_after("Events") if not row[-1]] == []


def test_documented_events_are_those_of_the_header():
    """Slug and sentence of docs/drop-reasons.md, in the header's order."""
    documented = [(row[0], row[1]) for row in table_after("Events")]

    assert documented == [(e.slug, e.text) for e in abi.event_kinds()]


# -- programs


def test_programs_are_far_from_the_verifiers_limit(node, capsys):
    """Under a quarter of a million instructions: later kernels verify otherwise, and count more.

    Not a test for each: on another kernel a few of those would be enough (conftest.py).
    """
    found = {name: node.program_info(name).verified_instructions for name in abi.PROGRAMS}

    with capsys.disabled():
        print()
        for name, count in found.items():
            print(f"{name}: {count} instructions verified, of 1,000,000")
    assert {name: count for name, count in found.items() if not 0 < count < 250_000} == {}
