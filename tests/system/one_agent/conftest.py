# SPDX-License-Identifier: Apache-2.0
"""For the tests of one node with an agent: each module has one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api import Agent
from tests.one_agent import Bench, one_agent


@pytest.fixture(scope="module")
def only_node() -> Iterator[Bench]:
    """Of a module that asks for `bench`."""
    with one_agent() as made:
        yield made


@pytest.fixture
def bench(only_node: Bench) -> Bench:
    """A node with an agent and the usual state, and nobody attached."""
    only_node.reset()
    return only_node


@pytest.fixture
def ask(bench: Bench) -> Agent:
    """The connection to that agent."""
    return bench.agent
