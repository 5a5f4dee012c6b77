# SPDX-License-Identifier: Apache-2.0
"""What the command prints: data on stdout, talk on stderr, JSON where it was asked for."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from geneve_ebpf.errors import GeneveError

# Whether -j was given. One process runs one command, so this is its whole state.
json_wanted = False


def want_json(wanted: bool) -> None:
    """Print JSON from now on, or text."""
    global json_wanted
    json_wanted = wanted


def document(name: str, **fields: Any) -> dict[str, Any]:
    """A JSON answer of the command's own, with its schema first."""
    return {"schema": f"geneve-ebpf/{name}/1", **fields}


def emit(answer: dict[str, Any], *lines: str) -> None:
    """Print an answer: whole as one line of JSON after -j, else as these lines."""
    if json_wanted:
        print(json.dumps(answer, separators=(",", ":")))
        flush()
        return
    for line in lines:
        print(line)
    flush()


def flush() -> None:
    """Let whoever reads stdout see what was printed. Raises OSError if nobody can."""
    if sys.stdout is None:  # closed before we began
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell the person; a program that reads stdout does not see it."""
    print(text, file=sys.stderr, flush=True)


def complain(error: GeneveError) -> None:
    """Print an error on stderr: a line of JSON after -j, else what and how to mend it."""
    if json_wanted:
        note(json.dumps(document("error", **error.as_json()), separators=(",", ":")))
        return
    text = f"error: {one_line(error.message)} ({error.code.slug})"
    if "[" in error.field:  # one of many, in a file
        text += f"\n  at {one_line(error.field)}"
    for name, pair in error.details.items():
        if isinstance(pair, dict) and {"have", "want"} <= pair.keys():
            text += f"\n  {name}: it has {shown(pair['have'])}, asked for {shown(pair['want'])}"
    if error.hint:
        text += f"\nhint: {one_line(error.hint)}"
    note(text)


def one_line(text: str) -> str:
    """The text without line breaks and control characters that would move a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def shown(value: object) -> str:
    """A value of a JSON answer as text for a table."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(shown(item) for item in value)
    return one_line(str(value))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows under a header, columns two spaces apart; numbers stand right."""
    body = list(rows)
    right = [
        bool(body) and all(isinstance(row[i], int) and not isinstance(row[i], bool) for row in body)
        for i in range(len(header))
    ]
    cells = [list(header), *([shown(value) for value in row] for row in body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]


def fields(pairs: Iterable[tuple[str, object]]) -> list[str]:
    """One `name  value` a line, values in a column."""
    body = [(name, shown(value)) for name, value in pairs]
    width = max(len(name) for name, _ in body)
    return [f"{name.ljust(width)}  {value}" for name, value in body]


def duration(seconds: float) -> str:
    """A duration in its largest sensible unit: 42s, 7m, 3h, 12d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def age(stamp: object) -> str:
    """How long ago an RFC 3339 time was; "-" if it is not one."""
    from datetime import datetime

    try:
        then = datetime.fromisoformat(str(stamp).replace("Z", "+00:00")).timestamp()
    except ValueError:
        return "-"
    return duration(time.time() - then)


def colour(text: str, code: int, stream: Any = None) -> str:
    """The text in an SGR colour, on a terminal only and never under NO_COLOR."""
    stream = sys.stdout if stream is None else stream
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
