"""A kid that no known key has: an outage until the issuer was asked after it came up, and a bad token from then on."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_server.auth.tokens.jwks import COOLDOWN_S, JwksStore
from syncbeat_server.auth.tokens.keys import MAX_KID
from syncbeat_server.auth.tokens.unknown_kid_counts import MANY_ADDRESSES
from syncbeat_server.errors import DependencyDown
from tests.support.fake_clock import FakeClock
from tests.support.jwks_publisher import Publisher, document, pass_time, running

pytestmark = pytest.mark.http

BOT = "ipv4:192.0.2.1"


def address(number: int) -> str:
    return f"ipv4:198.51.100.{number}"


async def wait_s(store: JwksStore, kid: str, of: str = "") -> float:
    """Return the wait that the bearer of this kid is told."""
    with pytest.raises(DependencyDown) as raised:
        await store.find_key(kid, "ES256", of)
    return raised.value.retry_after_s


async def test_unknown_kid_flood_cannot_delay_key_rotation(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        for round_ in range(5):
            # The bot uses up the fetch of these 30 s, and goes on; then the issuer changes its key.
            assert await store.find_key(f"invented {round_}", "ES256", BOT) is None
            publisher.body = document(f"new {round_}")
            for passed in range(1, 30, 7):
                await clock.advance(7.0 if passed > 1 else 1.0)
                await wait_s(store, f"invented {round_} {passed}", BOT)
                assert await wait_s(store, f"new {round_}", address(1)) == COOLDOWN_S - passed
            await clock.advance(1.0)
            assert await store.find_key(f"new {round_}", "ES256", address(1)) is not None
            await clock.advance(COOLDOWN_S)


async def test_unknown_kid_seen_in_the_pause_is_invalid_after_one_fetch(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        assert await store.find_key("first", "ES256") is None
        await clock.advance(10.0)
        assert await store.find_key("first", "ES256") is None, "it was judged, and is until there may be another fetch"
        assert await wait_s(store, "second") == 20.0
        await clock.advance(5.0)
        assert await wait_s(store, "second") == 15.0
        await clock.advance(15.0)
        before = publisher.requests
        assert await store.find_key("second", "ES256") is None
        assert publisher.requests == before + 1
        for _ in range(3):
            await clock.advance(9.0)
            assert await store.find_key("second", "ES256") is None
        assert publisher.requests == before + 1


async def test_unknown_kid_is_decided_by_any_later_fetch(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        left_s = clock.until_next_s()
        await pass_time(store, left_s - 10.0)
        assert await store.find_key("forced", "ES256") is None
        await clock.advance(1.0)
        await wait_s(store, "in the pause")
        await wait_s(store, "new")
        publisher.body = document("new")
        await pass_time(store, 9.5)  # the store's own refresh
        assert await store.find_key("new", "ES256") is not None
        assert await store.find_key("in the pause", "ES256") is None


async def test_unknown_kid_is_not_decided_by_a_fetch_begun_before(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    asked, let_go = asyncio.Event(), asyncio.Event()
    answer = publisher.answer

    async def slowly(request: object) -> object:
        asked.set()
        await let_go.wait()
        return await answer(request)  # type: ignore[arg-type]  # it is the request

    publisher.answer = slowly  # type: ignore[assignment]  # the publisher takes any handler
    first = asyncio.ensure_future(store.find_key("first", "ES256"))
    await asked.wait()
    await clock.advance(1.0)
    second = asyncio.ensure_future(store.find_key("second", "ES256"))
    await asyncio.sleep(0)
    let_go.set()
    assert await first is None
    with pytest.raises(DependencyDown):
        await second


async def test_unknown_kid_of_many_addresses_is_fetched_within_the_pause(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        assert await store.find_key("invented", "ES256", BOT) is None
        await clock.advance(1.0)
        publisher.body = document("new")
        for number in range(MANY_ADDRESSES - 1):
            for _ in range(3):
                await wait_s(store, "new", address(number))
        before = publisher.requests
        assert await store.find_key("new", "ES256", address(MANY_ADDRESSES)) is not None
        assert publisher.requests == before + 1


async def test_unknown_kid_reserve_is_small(store: JwksStore, publisher: Publisher, clock: FakeClock) -> None:
    async with running(store):
        before = publisher.requests
        for second in range(59):
            for kid in range(20):
                for number in range(MANY_ADDRESSES + 1):
                    try:
                        assert await store.find_key(f"invented {second} {kid}", "ES256", address(number)) is None
                    except DependencyDown:
                        continue
            await clock.advance(1.0)
        assert publisher.requests - before <= 4, "twice in 30 s"


async def test_unknown_kid_reserve_counts_one_address_once(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        assert await store.find_key("invented", "ES256", BOT) is None
        await clock.advance(1.0)
        before = publisher.requests
        for _ in range(50):
            await wait_s(store, "new", BOT)
            await wait_s(store, "newer")  # an address that is not known is none
        assert publisher.requests == before


@pytest.mark.parametrize(
    ("kid", "algorithm"),
    [("k1", "RS256"), ("unknown", "HS256"), ("unknown", "none"), ("unknown", "PS256"), ("k" * (MAX_KID + 1), "ES256")],
)
async def test_unknown_kid_no_issuer_could_publish_is_invalid_at_once(
    store: JwksStore, publisher: Publisher, kid: str, algorithm: str
) -> None:
    async with running(store):
        before = publisher.requests
        assert await store.find_key(kid, algorithm, BOT) is None
        assert publisher.requests == before


async def test_unknown_kid_memory_is_bounded_and_keeps_popular_kids(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        assert await store.find_key("invented", "ES256", BOT) is None
        await clock.advance(1.0)
        for number in range(5_000):
            await wait_s(store, f"invented {number}", BOT)
            if number % 500 == 0:
                await wait_s(store, "asked for again and again", BOT)
        assert len(store._unknown._kids) <= 1_024
        publisher.body = document("asked for again and again")
        for number in range(1, MANY_ADDRESSES - 1):
            await wait_s(store, "asked for again and again", address(number))
        assert await store.find_key("asked for again and again", "ES256", address(MANY_ADDRESSES)) is not None
