# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of a map's types: just enough BTF to read structs.

The format is Documentation/bpf/btf.rst of the kernel; bpftool would do, but is
not everywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from geneve_ebpf.loader import bpf

_ARRAY, _STRUCT, _TYPEDEF = 3, 4, 8
_ALIASES = {8, 9, 10, 11}  # typedef, volatile, const, restrict
# Bytes behind each type's own twelve: fixed, or for each of its members.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_PER_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


@dataclass(frozen=True, slots=True)
class Struct:
    """A C struct as clang laid it out. fields: (name, offset in bytes), in order."""

    name: str
    size: int
    fields: tuple[tuple[str, int], ...]


class Btf:
    """The types of one BTF object."""

    def __init__(self, ident: int) -> None:
        raw = bpf.read_btf(ident)
        _, _, _, header, type_at, type_size, string_at, string_size = struct.unpack_from(
            "<HBBIIIII", raw
        )
        self._strings = raw[header + string_at : header + string_at + string_size]
        self._types: list[tuple[str, int, int, bytes]] = [("void", 0, 0, b"")]
        at, end = header + type_at, header + type_at + type_size
        while at < end:
            name, info, size = struct.unpack_from("<III", raw, at)
            kind, members = info >> 24 & 31, info & 0xFFFF
            extra = _FIXED.get(kind, _PER_MEMBER.get(kind, 0) * members)
            body = raw[at + 12 : at + 12 + extra]
            self._types.append((self._string(name), kind, size, body))
            at += 12 + extra

    def _string(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode()

    def type(self, number: int) -> Struct | str:
        """A struct, or the name of anything else; typedefs keep their own name."""
        name, kind, size, body = self._types[number]
        if kind in _ALIASES and not name:
            return self.type(size)
        if kind != _STRUCT:
            return name
        fields = []
        for at in range(0, len(body), 12):
            field, _, bits = struct.unpack_from("<III", body, at)
            fields.append((self._string(field), (bits & 0xFFFFFF) // 8))
        return Struct(name, size, tuple(fields))
