"""The cache of checked tokens: a minute, not beyond the token's end, bounded, forgotten when told so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from syncbeat_server.auth.accounts.account_status_cache import CachedStatus
from syncbeat_server.auth.accounts.token_cache import CacheStats, TokenCache
from syncbeat_server.auth.model import AccountStatus, Issuer, Principal, PrincipalKind, VerifiedToken
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

SIZE = 10


@pytest.fixture
def clock() -> FakeClock:
    """No database here, so the clock is nobody else's."""
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> TokenCache:
    return TokenCache(clock, SIZE)


def keep(
    cache: TokenCache,
    clock: FakeClock,
    digest: bytes,
    user_id: str = "ann",
    app_id: str = "default",
    session_id: str = "s",
    life_s: float = 3600.0,
) -> CachedStatus:
    expires_at = clock.now() + timedelta(seconds=life_s)
    token = VerifiedToken(Issuer(app_id, "issuer"), user_id, session_id, clock.now(), expires_at)
    status = CachedStatus(AccountStatus(exists=True), clock.monotonic() + 1_000_000)
    cache.put(digest, Principal(PrincipalKind.USER, user_id, app_id=app_id, token=token), token, status)
    return status


async def test_token_cache_keeps_a_token_for_a_minute(cache: TokenCache, clock: FakeClock) -> None:
    keep(cache, clock, b"1")
    await clock.advance(59.9)
    found = cache.find(b"1")
    assert found is not None
    assert found.name == "ann"
    assert cache.find(b"2") is None
    await clock.advance(0.1)
    assert cache.find(b"1") is None
    assert cache.stats() == CacheStats(size=1, hits=1, misses=2, evictions=0)


async def test_token_cache_entry_ends_with_its_token(cache: TokenCache, clock: FakeClock) -> None:
    keep(cache, clock, b"1", life_s=5)
    await clock.advance(34.9)  # the issuer's clock may be 30 s ahead
    assert cache.find(b"1") is not None
    await clock.advance(0.1)
    assert cache.find(b"1") is None


async def test_token_cache_entry_ends_with_its_account_status(cache: TokenCache, clock: FakeClock) -> None:
    status = keep(cache, clock, b"1")
    status.valid_until = float("-inf")
    assert cache.find(b"1") is None


async def test_token_cache_evicts_least_recently_used(cache: TokenCache, clock: FakeClock) -> None:
    for number in range(SIZE):
        keep(cache, clock, bytes([number]))
    assert cache.find(bytes([0])) is not None
    keep(cache, clock, b"new")
    assert cache.find(bytes([0])) is not None
    assert cache.find(bytes([1])) is None
    assert (cache.stats().size, cache.stats().evictions) == (SIZE, 1)
    assert cache.remove("default", "ann") == SIZE


async def test_token_cache_removes_ended_tokens_as_others_come(cache: TokenCache, clock: FakeClock) -> None:
    for number in range(SIZE - 2):
        keep(cache, clock, bytes([number]))
    await clock.advance(60)
    for number in range(3):
        keep(cache, clock, b"new" + bytes([number]))
    assert cache.stats() == CacheStats(size=3, hits=0, misses=0, evictions=0)
    assert cache.find(b"new\x00") is not None


async def test_token_cache_forgets_by_user_session_app_or_all(cache: TokenCache, clock: FakeClock) -> None:
    def fill() -> None:
        for number, (app_id, user_id, session_id) in enumerate(
            [("default", "ann", "s1"), ("default", "ann", "s2"), ("default", "bob", "s3"), ("other", "ann", "s1")]
        ):
            keep(cache, clock, bytes([number]), user_id, app_id, session_id)

    def left() -> list[int]:
        return [number for number in range(4) if cache.find(bytes([number])) is not None]

    fill()
    assert (cache.remove("default", "ann"), left()) == (2, [2, 3])
    assert cache.remove("default", "ann") == 0
    fill()
    assert (cache.remove("default", "ann", "s1"), left()) == (1, [1, 2, 3])
    fill()
    assert (cache.remove("default", session_id="s3"), left()) == (1, [0, 1, 3])
    fill()
    assert (cache.remove("default"), left()) == (3, [3])
    fill()
    assert (cache.remove(None), left()) == (4, [])
    assert cache.stats().size == 0
