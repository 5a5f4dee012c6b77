# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a configuration file, where starting stops at the first mistake."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

from geneve_ebpf.agent.config import AgentConfig, load, parse
from geneve_ebpf.errors import GeneveError

# Stand-ins for keys that have no default, so that what follows can be looked at.
_EXAMPLES: dict[str, Any] = {"node.vtep": "192.0.2.1", "node.uplinks": ["eth0"]}


def check(path: Path) -> tuple[AgentConfig | None, list[GeneveError]]:
    """A configuration, or None and each mistake in it, in the order they were found.

    A mistake is looked past by taking its key away, so one that only shows beside the
    key taken away is found once that one is mended.
    """
    try:
        return load(path), []
    except GeneveError as error:
        if not error.field:  # not readable, or not TOML: there is nothing to look past
            return None, [error]
    document = tomllib.loads(path.read_text())
    problems: list[GeneveError] = []
    while True:
        try:
            parse(copy.deepcopy(document))
        except GeneveError as error:
            problems.append(error)
            if not _look_past(document, error.field):
                return None, problems
        else:
            return None, problems


def _look_past(document: dict[str, Any], field: str) -> bool:
    """Take what a mistake is about out of the document; False if it is not to be found there."""
    table, _, key = field.partition(".")
    if not key:
        return document.pop(table, None) is not None
    keys = document.setdefault(table, {})
    stood = keys.pop(key, None)
    # An example that is wrong itself, beside what else stands there, is as far as it goes.
    if field in _EXAMPLES and stood != _EXAMPLES[field]:
        keys[key] = _EXAMPLES[field]
        return True
    return stood is not None and field not in _EXAMPLES
