# SPDX-License-Identifier: Apache-2.0
"""Typed access to pinned maps: keys and values are the ctypes structs of `abi`.

`Table` works by system calls: each update swaps a whole element for readers of
a hash or trie. `SharedArray` maps an array into this process: a store is
visible at once, without a system call, and word by word.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.loader import bpf

K = TypeVar("K", bound=ctypes.Structure)
V = TypeVar("V", bound=ctypes.Structure)

_PER_CPU = {5, 6, 10}  # BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH
_BATCH = 1024  # elements a system call


def possible_cpus() -> int:
    """How many values a row of a per-CPU map has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace("-", ",").split(",")[-1]) + 1


class Table(Generic[K, V]):
    """A pinned map of keys K and values V.

    Raises GeneveError LAYOUT_MISMATCH when the pin is not of that shape, and
    MAP_FULL when an insert finds no room; other failures are OSError.
    """

    def __init__(self, path: Path, key: type[K], value: type[V]) -> None:
        self.name = path.name
        self._key_type, self._value_type = key, value
        self._fd = bpf.open_pin(path)
        try:
            info = bpf.map_info(self._fd)
            if (info.key_size, info.value_size) != (ctypes.sizeof(key), ctypes.sizeof(value)):
                raise GeneveError(
                    Code.LAYOUT_MISMATCH,
                    f"map {path.name} holds {info.key_size}-byte keys and "
                    f"{info.value_size}-byte values, not {ctypes.sizeof(key)} and "
                    f"{ctypes.sizeof(value)}",
                    hint="take the node down with the version that made it",
                )
            self._cpus = possible_cpus() if info.type in _PER_CPU else 1
        except BaseException:
            os.close(self._fd)
            raise
        self.max_entries = info.max_entries
        # A per-CPU value is padded to eight bytes for each CPU.
        size = info.value_size if self._cpus == 1 else -(-info.value_size // 8) * 8 * self._cpus
        self._key = ctypes.create_string_buffer(info.key_size)
        self._value = ctypes.create_string_buffer(size)
        self._attr = ctypes.create_string_buffer(
            struct.pack(
                "<IIQQQ",
                self._fd,
                0,
                ctypes.addressof(self._key),
                ctypes.addressof(self._value),
                0,
            )
        )
        # Assigning to a ctypes array goes byte by byte; to a view of it, at once.
        self._key_view = memoryview(self._key).cast("B")
        self._value_view = memoryview(self._value).cast("B")
        self._flags = memoryview(self._attr).cast("B")[24:32].cast("Q")

    def close(self) -> None:
        """Give back the file descriptor; the map lives on by its pin."""
        os.close(self._fd)

    def get(self, key: K) -> V | None:
        """The value, or None. Not for per-CPU maps."""
        self._key_view[:] = bytes(key)
        self._flags[0] = 0  # an insert may have left one, which a look-up does not take
        try:
            bpf.call(bpf.MAP_LOOKUP_ELEM, self._attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return self._value_type.from_buffer_copy(self._value)

    def get_each_cpu(self, key: K) -> list[V]:
        """The row of a per-CPU map: one value per possible CPU. [] if there is none."""
        self._key_view[:] = bytes(key)
        try:
            bpf.call(bpf.MAP_LOOKUP_ELEM, self._attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        step = len(self._value) // self._cpus
        return [
            self._value_type.from_buffer_copy(self._value, cpu * step) for cpu in range(self._cpus)
        ]

    def set(self, key: K, value: V) -> None:
        """Insert or replace."""
        self._put(bytes(key), bytes(value), 0)

    def insert_packed(self, key: bytes, value: bytes) -> bool:
        """Insert; False if the key is there already. Key and value are in their layouts."""
        try:
            self._put(key, value, 1)  # BPF_NOEXIST
        except OSError as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def clear_row(self, key: K) -> None:
        """Zero the values of every CPU."""
        ctypes.memset(self._value, 0, len(self._value))
        self._key_view[:] = bytes(key)
        self._flags[0] = 0
        bpf.call(bpf.MAP_UPDATE_ELEM, self._attr)

    def remove(self, key: K) -> bool:
        """Delete; False if it was not there."""
        self._key_view[:] = bytes(key)
        try:
            # Up to the key: the kernel wants everything behind it to be zero.
            bpf.call(bpf.MAP_DELETE_ELEM, self._attr, 16)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _put(self, key: bytes, value: bytes, flags: int) -> None:
        self._key_view[:] = key
        self._value_view[:] = value
        self._flags[0] = flags
        try:
            bpf.call(bpf.MAP_UPDATE_ELEM, self._attr)
        except OSError as error:
            raise self._full(error) from None

    def _full(self, error: OSError) -> Exception:
        if error.errno in (errno.E2BIG, errno.ENOSPC, errno.ENOMEM):
            return GeneveError(
                Code.MAP_FULL,
                f"map {self.name} is full ({self.max_entries} entries) or out of memory",
                hint="see geneve_ebpf_map_pressure_ratio",
            )
        return error

    def items(self) -> Iterator[tuple[K, V]]:
        """Every element, a thousand a system call. Not for per-CPU maps."""
        key_size, value_size = len(self._key), len(self._value)
        for count, keys, values in self._batches():
            for index in range(count):
                yield (
                    self._key_type.from_buffer_copy(keys, index * key_size),
                    self._value_type.from_buffer_copy(values, index * value_size),
                )

    def count(self) -> int:
        """How many elements a hash or trie holds."""
        return sum(count for count, _, _ in self._batches())

    def _batches(self) -> Iterator[tuple[int, ctypes.Array[Any], ctypes.Array[Any]]]:
        """How many elements were read, and their keys and values, until the next is taken."""
        key_size, value_size = len(self._key), len(self._value)
        room = min(_BATCH, self.max_entries)
        keys = ctypes.create_string_buffer(key_size * room)
        values = ctypes.create_string_buffer(value_size * room)
        # A hash wants four bytes for its position, a trie a whole key.
        position = ctypes.create_string_buffer(max(4, key_size))
        first = True
        while True:
            attr = ctypes.create_string_buffer(
                struct.pack(
                    "<QQQQIIQQ",
                    0 if first else ctypes.addressof(position),
                    ctypes.addressof(position),
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    room,
                    self._fd,
                    0,
                    0,
                )
            )
            last = False
            try:
                bpf.call(bpf.MAP_LOOKUP_BATCH, attr)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                last = True
            first = False
            (count,) = struct.unpack_from("<I", attr.raw, 32)
            yield count, keys, values
            if last:
                return

    def set_many(self, elements: Iterable[tuple[K, V]]) -> None:
        """Insert or replace many, a thousand a system call.

        On an error the elements before it are in the map.
        """
        packed = [(bytes(key), bytes(value)) for key, value in elements]
        self.set_many_packed([key for key, _ in packed], [value for _, value in packed])

    def set_many_packed(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """As `set_many`, with as many keys as values, in their layouts already."""
        for start in range(0, len(keys), _BATCH):
            end = start + _BATCH
            self._set_batch(keys[start:end], values[start:end])

    def remove_many(self, keys: Iterable[K]) -> None:
        """Delete many; those that are not there do not matter."""
        for key in keys:
            self.remove(key)

    def _set_batch(self, some_keys: Sequence[bytes], some_values: Sequence[bytes]) -> None:
        keys = ctypes.create_string_buffer(b"".join(some_keys))
        values = ctypes.create_string_buffer(b"".join(some_values))
        attr = bpf.create_attr(
            "<QQQQIIQQ",
            0,
            0,
            ctypes.addressof(keys),
            ctypes.addressof(values),
            len(some_keys),
            self._fd,
            0,
            0,
        )
        try:
            bpf.call(bpf.MAP_UPDATE_BATCH, attr)
        except OSError as error:
            raise self._full(error) from None


class SharedArray(Generic[V]):
    """A pinned BPF_F_MMAPABLE array, mapped into this process.

    `rows[i]` is a ctypes view: reading or assigning its fields touches the
    map. A field is stored as one aligned word of its size.
    """

    def __init__(self, path: Path, value: type[V], *, writable: bool) -> None:
        fd = bpf.open_pin(path)
        try:
            info = bpf.map_info(fd)
            if info.value_size != ctypes.sizeof(value):
                raise GeneveError(
                    Code.LAYOUT_MISMATCH,
                    f"map {path.name} holds {info.value_size}-byte values, not "
                    f"{ctypes.sizeof(value)}",
                    hint="take the node down with the version that made it",
                )
            size = info.value_size * info.max_entries
            page = mmap.PAGESIZE
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            self._map = mmap.mmap(fd, -(-size // page) * page, mmap.MAP_SHARED, access)
        finally:
            os.close(fd)
        self.max_entries = info.max_entries
        self.step = info.value_size
        self._value_type = value
        self.memory = memoryview(self._map)[:size]
        self._views: list[memoryview] = []

    def close(self) -> None:
        """Unmap it; a row's view that somebody still holds keeps it mapped until that goes."""
        with contextlib.suppress(BufferError):
            for view in (*self._views, self.memory):
                view.release()
            self._map.close()

    def view(self, letter: str) -> memoryview:
        """The whole array as machine words: "I" for four bytes, "Q" for eight."""
        self._views.append(self.memory.cast(letter))  # type: ignore[call-overload]
        return self._views[-1]

    def row(self, index: int) -> V:
        """A live view of one row."""
        return self._value_type.from_buffer(self.memory, index * self.step)

    def copy(self, index: int) -> V:
        """One row as it is now; fields may be of different moments."""
        return self._value_type.from_buffer_copy(self.memory, index * self.step)
