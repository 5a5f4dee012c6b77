# SPDX-License-Identifier: Apache-2.0
"""The closed list of error codes, and the one error class."""

from __future__ import annotations

import json

import pytest

from geneve_ebpf.errors import Code, Exit, GeneveError


@pytest.mark.parametrize("code", Code, ids=lambda code: code.slug)
def test_a_code_says_what_it_means(code):
    """A status of failure for HTTP, one for the shell, and a sentence without its full stop."""
    meaning = code.value

    assert 400 <= meaning.status < 600
    assert meaning.exit is not Exit.OK
    assert meaning.text
    assert not meaning.text.endswith(".")


@pytest.mark.parametrize("code", Code, ids=lambda code: code.slug)
def test_status_and_exit_of_a_code_agree(code):
    """Whoever reads one of the two must not be told another story by the other."""
    meaning = code.value
    kinds = {
        400: {Exit.USAGE},
        403: {Exit.NOT_PERMITTED},
        404: {Exit.NOT_FOUND, Exit.USAGE},
        409: {Exit.CONFLICT, Exit.BUSY},  # the latter where waiting helps
        412: {Exit.CONFLICT},
        429: {Exit.BUSY},
    }

    assert meaning.exit in kinds.get(meaning.status, set(Exit) - {Exit.OK})


def test_codes_are_distinct():
    """Two codes that mean the same would be one member under two names."""
    assert len(Code) == len(Code.__members__)


def test_an_error_in_json_is_what_a_client_needs_to_decide():
    """Its code, what, how to mend it, whether to repeat, and the field at fault."""
    error = GeneveError(Code.BAD_VNI, "0 is not a VNI", hint="1 or more", field="vpc.vni")

    body = json.loads(json.dumps(error.as_json()))

    assert body == {
        "error": {
            "code": "bad_vni",
            "message": "0 is not a VNI",
            "hint": "1 or more",
            "retryable": False,
            "field": "vpc.vni",
        }
    }


def test_details_are_there_only_when_there_are_any():
    """They are for machines; most errors have none."""
    details = {"vpc": {"have": "blue", "want": "red"}}

    error = GeneveError(Code.SANDBOX_EXISTS, "attached otherwise", details=details)

    assert error.as_json()["error"]["details"] == details
    assert "details" not in GeneveError(Code.INTERNAL, "x").as_json()["error"]


def test_an_error_prints_as_its_message():
    """What a log line or an assertion shows of it."""
    assert str(GeneveError(Code.NO_SLOT, "no slot is ready")) == "no slot is ready"
