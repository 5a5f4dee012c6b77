# SPDX-License-Identifier: Apache-2.0
"""For the tests of slots of every kind: each module has two nodes (tests/kinds.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.network import Lab, Node
from tests.command import new_lab
from tests.kinds import empty, start


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes; the first keeps slots of every kind."""
    with new_lab("kinds") as made:
        start(made)
        yield made


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """The first, with nobody attached and all its slots ready."""
    yield lab.nodes[0]
    empty(lab)
