"""The compiled checks refuse what protovalidate refuses by the same rules, and what a list says beside that."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from syncbeat_server.errors import FieldReason, FieldViolation
from tests.support import protovalidate_oracle
from tests.support.contract_messages import random_message
from tests.support.protovalidate_oracle import (
    POOL,
    REQUESTS,
    differences,
    explained,
    messages,
    validator,
    without_subscripts,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", REQUESTS)
def test_compiled_checks_agree_with_protovalidate(name: str) -> None:
    kind = POOL.FindMessageTypeByName(name)
    for message in messages(name, 1_000, 0):
        assert differences(kind, message) == (set(), set()), message


def test_random_messages_are_good_and_bad_in_every_way() -> None:
    """Else the property above would hold of validators that say little."""
    reasons: dict[FieldReason, int] = {}
    good = bad = stricter = 0
    for name in REQUESTS:
        kind = POOL.FindMessageTypeByName(name)
        for message in messages(name, 200, 1):
            faults = list(validator(kind)(message))
            good, bad = good + (not faults), bad + bool(faults)
            stricter += any(explained(kind, fault) for fault in faults)
            for fault in faults:
                reasons[fault.reason] = reasons.get(fault.reason, 0) + 1
    assert 0.2 < good / (good + bad) < 0.8
    assert stricter > 50
    beyond_rules = {FieldReason.RESERVED, FieldReason.CONFLICT}
    assert reasons.keys() == set(FieldReason) - beyond_rules


def test_difference_between_the_validators_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = POOL.FindMessageTypeByName("syncbeat.v1.GetHintRequest")
    made: Any = random_message(kind, Random(0))
    made.Clear()
    assert differences(kind, made) == (set(), set())
    made.device_id = "d" * 129
    assert differences(kind, made) == (set(), set())
    monkeypatch.setattr(protovalidate_oracle, "validator", lambda _kind: lambda _message: [])
    assert differences(kind, made) == ({"device_id"}, set())
    fault = FieldViolation("cursors[0].scope", "required", FieldReason.REQUIRED)
    monkeypatch.setattr(protovalidate_oracle, "validator", lambda _kind: lambda _message: [fault])
    assert differences(kind, made) == ({"device_id"}, {"cursors.scope"})


def test_subscripts_are_taken_out_of_paths() -> None:
    assert without_subscripts('changes[0].data["a.b[c]"].x') == "changes.data.x"
