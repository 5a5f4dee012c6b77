# SPDX-License-Identifier: Apache-2.0
"""The smallest state and frame of which model and programs still think differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.compare import Comparison, Mismatch
from tests.fuzz.traffic import SHORTEST, Item
from tests.model.state import NAMESPACE, Binding, Config, Node

_TRIES = 3000


def shrink(comparison: Comparison, found: Mismatch) -> Mismatch:
    """A mismatch of the same kind that holds for one frame alone, as small as greed makes it.

    What only shows after other frames is given back as it is.
    """
    kind = _kind(found.what)
    left = _TRIES

    def differs(node: Node, item: Item) -> str:
        nonlocal left
        left -= 1
        what = comparison.alone(node, item) if left > 0 else ""
        return what if _kind(what) == kind else ""

    if not differs(found.node, found.item):
        return found
    node, item = found.node, found.item
    changed = True
    while changed and left > 0:
        changed = False
        for candidate in _smaller_nodes(node):
            if differs(candidate, item):
                node, changed = candidate, True
                break
        else:
            smaller = _smaller_frame(item, lambda it, node=node: bool(differs(node, it)))
            if smaller is not item:
                item, changed = smaller, True
    return Mismatch(node, item, comparison.alone(node, item))


def _kind(what: str) -> str:
    """What the mismatch is about, without the bytes."""
    return what.split(":")[0].split(" from byte")[0]


def _smaller_nodes(node: Node) -> Iterator[Node]:
    for name in ("endpoints", "exact", "prefixes", "nexthops", "vteps"):
        table = getattr(node, name)
        for key in table:
            yield replace(node, **{name: {k: v for k, v in table.items() if k != key}})
    for slot, binding in enumerate(node.bindings):
        if binding != Binding() and all(to.slot != slot for to in node.endpoints.values()):
            bindings = list(node.bindings)
            bindings[slot] = Binding()
            yield replace(node, bindings=tuple(bindings))
    for slot, binding in enumerate(node.bindings):
        for simpler in (replace(binding, native=False), replace(binding, kind=NAMESPACE)):
            if simpler != binding:
                bindings = list(node.bindings)
                bindings[slot] = simpler
                yield replace(node, bindings=tuple(bindings))
    plain = replace(Config(), vtep=node.config.vtep)
    if node.config != plain:
        yield replace(node, config=plain)


def _smaller_frame(item: Item, differs: Callable[[Item], bool]) -> Item:
    best = item
    for simpler in (
        replace(best, mark=0, priority=0),
        replace(best, complete=False),
    ):
        if simpler != best and differs(simpler):
            best = simpler
    shortest = SHORTEST.get(best.frame[12:14], 14)
    step = len(best.frame)
    while step := step // 2:
        while len(best.frame) - step >= shortest:
            shorter = replace(best, frame=best.frame[:-step])
            if not differs(shorter):
                break
            best = shorter
    for at in range(14, len(best.frame)):
        if best.frame[at]:
            zeroed = best.frame[:at] + b"\0" + best.frame[at + 1 :]
            if differs(replace(best, frame=zeroed)):
                best = replace(best, frame=zeroed)
    return best
