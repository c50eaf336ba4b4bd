"""How often an address may try refresh tokens."""

from __future__ import annotations

import pytest

from syncbeat_server.auth.attempts import Attempts
from syncbeat_server.errors import RateLimited
from tests.fakes import FakeClock


async def test_who_brings_good_tokens_has_many_attempts_and_gets_them_back() -> None:
    clock = FakeClock()
    attempts = Attempts(clock, 60, 5)
    for _ in range(60):
        attempts.take("a")
    with pytest.raises(RateLimited) as raised:
        attempts.take("a")
    assert raised.value.retry_after_s == 1.0
    attempts.take("b")
    await clock.advance(1.0)
    attempts.take("a")


async def test_who_brings_wrong_ones_has_few() -> None:
    clock = FakeClock()
    attempts = Attempts(clock, 60, 5)
    for _ in range(5):
        attempts.take("a")
        attempts.failed("a")
    with pytest.raises(RateLimited) as raised:
        attempts.take("a")
    assert raised.value.retry_after_s == 12.0
    await clock.advance(12.0)
    attempts.take("a")


async def test_peers_without_number_are_not_remembered_without_end() -> None:
    attempts = Attempts(FakeClock(), 1, 1)
    for number in range(10_001):
        attempts.take(f"peer {number}")
    assert len(attempts._peers) == 10_000
    attempts.take("peer 0")
