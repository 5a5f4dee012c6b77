# SPDX-License-Identifier: Apache-2.0
"""Links between the pages lead somewhere, and the index leaves no page out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "bench/**/*.md", "clients/**/*.md")
    for page in ROOT.glob(pattern)
)
# A line of code is no link, and no heading.
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text())


def links(page: Path) -> set[str]:
    """Where the page links to, but for other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return {target for target in found if not re.match(r"[a-z]+:", target)}


def anchors(page: Path) -> set[str]:
    """What its headings can be linked as, by the rule of the forges."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_in_it(page):
    dead = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)

    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_ours_that_is_named_is_there(page):
    """In a sentence or a block; what stands in script/ can be started."""
    text = page.read_text()
    named = set(re.findall(r"(?<![\w./-])((?:script|lab)/[a-z]+)(?![\w./-])", text))
    files = set(re.findall(r"`((?:tests|bpf|geneve_ebpf|deploy|bench|docs)/[\w./-]+\.\w+)`", text))

    assert [name for name in sorted(named) if not os.access(ROOT / name, os.X_OK)] == []
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []


def test_the_index_lists_every_page_once():
    """Those of docs/; the records of decisions/ have their own index."""
    listed = re.findall(r"^- .*?\]\(([\w/.-]+)\)", (DOCS / "README.md").read_text(), re.M)

    own = [name for name in listed if not name.startswith("..") and name.endswith(".md")]
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert sorted(own) == sorted(pages | {"decisions/README.md"})


def test_the_index_of_decisions_lists_every_record():
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (DOCS / "decisions/README.md").read_text())

    assert listed == sorted(page.name for page in (DOCS / "decisions").glob("[0-9]*.md"))
