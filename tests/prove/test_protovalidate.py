"""A hundred thousand random messages of each request type: the server and protovalidate refuse alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.protovalidate_oracle import POOL, REQUESTS, STRICTER, differences, messages, validator

pytestmark = pytest.mark.prove

MESSAGES = 100_000


@pytest.mark.timeout(3600)
def test_protovalidate_agrees_on_random_messages(record: Callable[[str, dict[str, object]], None]) -> None:
    refused = 0
    for name in REQUESTS:
        kind = POOL.FindMessageTypeByName(name)
        for message in messages(name, MESSAGES, 1):
            assert differences(kind, message) == (set(), set()), message
            refused += bool(validator(kind)(message))
    figures = {
        "command": "make prove ARGS='-k protovalidate'",
        "request_types": len(REQUESTS),
        "messages": MESSAGES * len(REQUESTS),
        "refused": refused,
        "differences_outside_the_list": 0,
        "list": sorted(STRICTER),
    }
    record("protovalidate", figures)
