"""Tests which breakers are told of a process that has many."""

from __future__ import annotations

import pytest

from syncbeat_server.status.model import MOST_BREAKERS, BreakerState, BreakerStatus
from syncbeat_server.status.policy.shown_breakers import shown_breakers

pytestmark = pytest.mark.unit


def breaker(name: str, state: BreakerState = BreakerState.CLOSED) -> BreakerStatus:
    return BreakerStatus(name, state, 0, None)


def test_breakers_of_stores_are_told_however_many_others_are_open() -> None:
    found = [breaker(f"push:{number:02}", BreakerState.OPEN) for number in range(40)]
    shown = [one.name for one in shown_breakers([*found, breaker("redis"), breaker("postgres")])]
    assert len(shown) == MOST_BREAKERS
    assert {"postgres", "redis"} < set(shown)
    assert shown == sorted(shown)


def test_breakers_that_are_not_closed_are_told_before_others() -> None:
    found = [breaker(f"push:{number:02}") for number in range(40)]
    found[37] = breaker("push:37", BreakerState.HALF_OPEN)
    assert "push:37" in {one.name for one in shown_breakers(found)}
