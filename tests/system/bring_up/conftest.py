# SPDX-License-Identifier: Apache-2.0
"""For the tests of a node's coming and going: a bed of a test's own, or two nodes of a module's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nodes import Bed, Node, two_nodes


@pytest.fixture
def bed() -> Iterator[Bed]:
    with Bed("boot") as made:
        yield made


@pytest.fixture(scope="module")
def shared_bed() -> Iterator[Bed]:
    with Bed("pair") as made:
        two_nodes(made)
        yield made


@pytest.fixture
def pair(shared_bed: Bed) -> Iterator[tuple[Node, Node]]:
    yield shared_bed.nodes[0], shared_bed.nodes[1]
    shared_bed.clear()
