# SPDX-License-Identifier: Apache-2.0
"""Asking an agent over its socket with the standard library's HTTP, and checking answers
against the OpenAPI file. Not our own client: it must not share our mistakes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPENAPI = json.loads((Path(__file__).parents[1] / "docs" / "openapi.yaml").read_text())


NONE: Mapping[str, str] = {}


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path, timeout: float = 60) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Agent:
    """Asks one agent; remembers the connection, and the head of the last answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = UnixConnection(path)

    def ask(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] = NONE
    ) -> tuple[int, Any]:
        """Status and decoded body (None if there is none; a list if it is lines of JSON)."""
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, target, content, dict(headers))
        answer = self._connection.getresponse()
        self.head = answer.headers
        text = answer.read()
        if answer.headers.get("Content-Type") == "application/x-ndjson":
            return answer.status, [json.loads(line) for line in text.splitlines()]
        return answer.status, json.loads(text) if text else None

    def must(self, method: str, target: str, body: Any = None) -> Any:
        """The body of an answer below 400."""
        status, answer = self.ask(method, target, body)
        assert status < 400, (method, target, status, answer)
        return answer

    def code(self, method: str, target: str, body: Any = None) -> str:
        """The code of an error; "" if it was none."""
        status, answer = self.ask(method, target, body)
        return answer["error"]["code"] if status >= 400 else ""

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()


def children(agent: int, module: str) -> list[int]:
    """Ids of an agent's child processes that run a module."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except OSError:  # it ended while we looked
            continue
        if parent == agent and module.encode() in words:
            found.append(int(entry.name))
    return found


def kill_slot_process(agent: int) -> None:
    """SIGKILL the process that makes an agent's slots."""
    for pid in children(agent, "geneve_ebpf.agent.slot_process"):
        os.kill(pid, signal.SIGKILL)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, or what it refers to."""
    while "$ref" in schema:
        found: Any = OPENAPI
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


KEYWORDS = {
    "type", "const", "enum", "pattern", "format", "minimum", "maximum", "items", "properties",
    "required", "additionalProperties", "oneOf", "description", "default",
}  # fmt: skip
TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
    "null": type(None),
}  # fmt: skip


def faults(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What of a value the schema does not allow. Knows the keywords that our file uses."""
    schema = resolved(schema)
    assert set(schema) <= KEYWORDS, f"teach this function {set(schema) - KEYWORDS}"
    if "oneOf" in schema:
        fitting = [one for one in schema["oneOf"] if not faults(value, one, where)]
        return [] if len(fitting) == 1 else [f"{where}: {len(fitting)} of oneOf fit"]
    kind = schema.get("type")
    if kind == "boolean":
        return [] if isinstance(value, bool) else [f"{where}: no boolean"]
    if kind and (not isinstance(value, TYPES[kind]) or isinstance(value, bool)):
        return [f"{where}: {value!r} is no {kind}"]
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    if schema.get("format") == "date-time" and not re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value
    ):
        found.append(f"{where}: {value!r} is no time in UTC")
    if value_below(value, schema) or value_above(value, schema):
        found.append(f"{where}: {value!r} is out of range")
    for number, item in enumerate(value if isinstance(value, list) else ()):
        found += faults(item, schema.get("items", {}), f"{where}[{number}]")
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        found += [f"{where}.{key}: not in the file" for key in value if key not in known]
        found += [f"{where}.{key}: missing" for key in schema["required"] if key not in value]
        for key in value.keys() & known.keys():
            found += faults(value[key], known[key], f"{where}.{key}")
    return found


def value_below(value: Any, schema: dict[str, Any]) -> bool:
    """Is a number less than the schema's minimum?"""
    return "minimum" in schema and value < schema["minimum"]


def value_above(value: Any, schema: dict[str, Any]) -> bool:
    """Is a number more than the schema's maximum?"""
    return "maximum" in schema and value > schema["maximum"]


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """(path, METHOD) -> operation, of the whole file."""
    return {
        (path, method.upper()): operation
        for path, item in OPENAPI["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    }


def path_of(target: str) -> str:
    """The path of the file that a request's target is an instance of."""
    plain = target.partition("?")[0]
    for path in sorted(OPENAPI["paths"], key=lambda path: "{" in path):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), plain):
            return path
    raise AssertionError(f"{target} is in no path of the OpenAPI file")
