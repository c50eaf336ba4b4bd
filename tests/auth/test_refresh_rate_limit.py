"""Limits refreshes per session, and forged refresh tokens per address."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from syncbeat_server.auth.sessions.refresh_rate_limit import DEFAULT_MAX_KEYS, RefreshRateLimit
from syncbeat_server.errors import RateLimited
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

Limit = Callable[[str], None]


def limits(clock: FakeClock, kind: str, max_keys: int = DEFAULT_MAX_KEYS) -> tuple[Limit, Limit]:
    """The limit of 5 a minute of a kind, by key, and the other kind's, of 1."""
    made = RefreshRateLimit(clock, *((5, 1) if kind == "sessions" else (1, 5)), max_keys=max_keys)

    def renewal(key: str) -> None:
        made.count_refresh("default", key)

    return (renewal, made.count_forged) if kind == "sessions" else (made.count_forged, renewal)


each_kind = pytest.mark.parametrize("kind", ["sessions", "addresses"])


@each_kind
async def test_refresh_rate_limit_refills_evenly_per_key(kind: str) -> None:
    clock = FakeClock()
    limit, other = limits(clock, kind)
    for _ in range(5):
        limit("a")
    for _ in range(2):  # a refusal costs nothing
        with pytest.raises(RateLimited) as raised:
            limit("a")
        assert raised.value.retry_after_s == 12.0
    limit("b")
    other("a")
    await clock.advance(12.0)
    limit("a")
    with pytest.raises(RateLimited):
        limit("a")
    await clock.advance(3_600.0)
    for _ in range(5):  # no more than that, however long it was away
        limit("a")
    with pytest.raises(RateLimited):
        limit("a")


@each_kind
async def test_refresh_rate_limit_bounds_its_keys(kind: str) -> None:
    _, limit = limits(FakeClock(), kind, max_keys=3)
    for key in "abcd":
        limit(key)
    for key in "bcd":  # the latest are known
        with pytest.raises(RateLimited):
            limit(key)
    limit("a")


def test_refresh_rate_limit_is_per_app() -> None:
    made = RefreshRateLimit(FakeClock(), 1, 1)
    made.count_refresh("default", "s")
    made.count_refresh("shop", "s")
