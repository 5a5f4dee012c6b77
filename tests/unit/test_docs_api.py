# SPDX-License-Identifier: Apache-2.0
"""docs/api.md and docs/openapi.yaml list the very codes there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from geneve_ebpf.errors import Code

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_codes_is_the_closed_list():
    """Code, status, whether it may be repeated, and the sentence: row for row."""
    table = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \| (.*) \|$", _page(), re.MULTILINE)

    assert table == [
        (
            code.slug,
            str(code.value.status),
            "yes" if code.value.retryable else "no",
            code.value.text,
        )
        for code in Code
    ]


def test_openapi_has_the_closed_list_of_codes():
    schemas = json.loads((DOCS / "openapi.yaml").read_text())["components"]["schemas"]

    assert schemas["ErrorBody"]["properties"]["code"]["enum"] == [code.slug for code in Code]


def test_the_page_names_every_path_and_no_other():
    """Names of parameters may differ; the paths and their methods may not."""
    page = _page().partition("## Errors")[0]
    paths = json.loads((DOCS / "openapi.yaml").read_text())["paths"]

    named = {
        (method, re.sub(r"\{\w+\}", "{}", path))
        for method, path in re.findall(r"`(GET|PUT|POST|DELETE) (/[\w/:{}]+)", page)
    }
    assert named == {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, methods in paths.items()
        for method in methods
        if method != "parameters"
    }


def _page() -> str:
    return (DOCS / "api.md").read_text()
