# SPDX-License-Identifier: Apache-2.0
"""What is said about a body that does not fit: one code, the field, no surprise."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneve_ebpf.agent import requests
from geneve_ebpf.errors import Code, GeneveError


@pytest.mark.parametrize(
    ("decode", "body", "field"),
    [
        (requests.ATTACH, b"", ""),
        (requests.ATTACH, b"{", ""),
        (requests.ATTACH, b'{"vpc": "blue"', ""),
        (requests.ATTACH, b'{"vpc": "blue"} {}', ""),
        (requests.ATTACH, b'{"vpc": "\xff"}', ""),
        (requests.ATTACH, b"[" * 100_000, ""),
        (requests.ATTACH, b"[]", ""),
        (requests.ATTACH, b"{}", "vpc"),
        (requests.ATTACH, b'{"vpc": 1}', "vpc"),
        (requests.ATTACH, b'{"vpc": "blue", "ip": "10.0.0.5"}', "ip"),
        (requests.ATTACH, b'{"vpc": "blue", "address": 5}', "address"),
        (requests.VPC_SETTINGS, b'{"vni": 1.5, "prefixes": []}', "vni"),
        (requests.VPC_SETTINGS, b'{"vni": true, "prefixes": []}', "vni"),
        (requests.VPC_SETTINGS, b'{"vni": "1", "prefixes": []}', "vni"),
        (requests.VPC_SETTINGS, b'{"vni": 1, "prefixes": ["10.0.0.0/8", 5]}', "prefixes[1]"),
        (requests.STATE, b'{"routes": {}}', "routes"),
        (requests.DOWN, b'{"force": 1}', "force"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(decode, body, field):
    with pytest.raises(GeneveError) as refused:
        decode(body)

    assert refused.value.code is Code.BAD_REQUEST
    assert refused.value.field == field
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b'{"vpc": "blue", "kind": "vm"}', "one of namespace, tap, host-tap"),
        (b'{"vpc": "blue", "mode": "bridge"}', "one of clone, native"),
    ],
)
def test_a_word_that_is_none_of_a_few_is_told_which_they_are(body, hint):
    with pytest.raises(GeneveError) as refused:
        requests.ATTACH(body)

    assert refused.value.hint == hint


def test_an_item_of_a_list_is_named_with_its_place():
    with pytest.raises(GeneveError) as refused:
        requests.ROUTE(b'{"vpc": "blue"}', "routes[17]")

    assert refused.value.field == "routes[17].prefix"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_body_whatever_raises_anything_else(body):
    for decode in (requests.ATTACH, requests.batch_of, requests.STATE, requests.ROUTE):
        with contextlib.suppress(GeneveError):
            decode(body)
