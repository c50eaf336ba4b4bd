"""An issuer's keys by URL, over real HTTP: fetched seldom, kept while it is away, refused when they are bad."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import gzip
import heapq
import itertools
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, cast

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from syncbeat_server.auth.model import KeyRow, VerifiedToken
from syncbeat_server.auth.service import Credentials
from syncbeat_server.auth.tokens.bearer import Bearer, parse_bearer
from syncbeat_server.auth.tokens.jwks import COOLDOWN_S, REFRESH_S, STALE_S, JwksStore
from syncbeat_server.auth.tokens.keys import key_table
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.errors import DependencyDown, TokenInvalid
from syncbeat_server.ops.logs import request_id
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import make_authenticator, make_caller_caches
from tests.support.fake_clock import FakeClock
from tests.support.jwks_publisher import ISSUER, KEY, Publisher, document, entry, pass_time, rests, running

pytestmark = pytest.mark.http

LAG_S = 0.02
HOUR = 3_600.0


class Lag:
    """The longest turns of the loop, in seconds of this thread's CPU: what others do to the machine is not ours."""

    def __init__(self) -> None:
        self.longest_s = [0.0] * 3

    async def watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            heapq.heappushpop(self.longest_s, now - before)
            before = now


async def watched(work: Coroutine[Any, Any, None]) -> float:
    """The third longest turn of the loop while this is done, which is more than twice.

    A virtual machine that is paused may count that as the CPU of whatever ran.
    """
    # As a server does when it has started: else the collector walks the whole test suite in one of the turns.
    gc.collect()
    gc.freeze()
    lag = Lag()
    watcher = asyncio.ensure_future(lag.watch())
    await asyncio.sleep(0)
    await work
    watcher.cancel()
    gc.unfreeze()
    return lag.longest_s[0]


async def test_jwks_key_is_found_by_kid(store: JwksStore) -> None:
    async with running(store):
        row = store.cached_key("k1", "ES256")
        assert row is not None
        assert (row.issuer, row.algorithm) == (ISSUER, "ES256")
        assert await store.find_key("k1", "ES256") is row
        assert store.cached_key("k2", "ES256") is None


async def test_jwks_known_key_verifies_without_a_fetch(store: JwksStore, clock: FakeClock) -> None:
    credentials = Credentials(key_table([]), {ISSUER.name: store}, {}, {})
    door = make_authenticator(credentials, make_caller_caches(cast(Database, None), clock), clock)

    def shown(row: KeyRow) -> Bearer:
        return parse_bearer([f"Bearer {mint(row, str(uuid.UUID(int=7)), clock.now(), timedelta(minutes=10))}"])

    ours = shown(KeyRow(ISSUER, "k1", "ES256", KEY))
    assert door.try_sync(ours) is None, "its key has to be fetched"
    async with running(store):
        assert isinstance(door.try_sync(ours), VerifiedToken)
        assert door.try_sync(shown(KeyRow(ISSUER, "k2", "ES256", KEY))) is None
        nowhere = dataclasses.replace(ISSUER, name="https://elsewhere.example")
        forged = KeyRow(ISSUER, "k1", "ES256", ec.generate_private_key(ec.SECP256R1()))
        for row in (forged, KeyRow(nowhere, "k1", "ES256", KEY)):
            with pytest.raises(TokenInvalid):
                door.try_sync(shown(row))


async def test_jwks_refetch_is_rate_limited_to_one_per_thirty_seconds(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async def ask() -> None:
        for second in range(96):
            asked = [store.find_key(f"unknown {second} {number}", "ES256") for number in range(105)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert all(one is None or isinstance(one, DependencyDown) for one in found)
            await clock.advance(1.0)

    async with running(store):
        before = publisher.requests
        longest_s = await watched(ask())
        # 10,080 kids within 96 s: at 0 s, 30 s, 60 s and 90 s.
        assert publisher.requests - before <= 96 // COOLDOWN_S + 1
        assert longest_s < LAG_S


async def test_jwks_outage_of_an_hour_goes_unnoticed_for_known_keys(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async def ask() -> None:
        for _ in range(int(HOUR)):
            assert store.cached_key("k1", "ES256") is not None
            await clock.advance(1.0)

    async with running(store):
        publisher.away = True
        failures = store.failures
        longest_s = await watched(ask())
        assert store.failures > failures + 10
        assert longest_s < LAG_S
        await rests(store)
        publisher.away = False
        publisher.body = document("k2")
        await pass_time(store, COOLDOWN_S * 1.2)
        assert store.cached_key("k2", "ES256") is not None


async def test_jwks_outage_makes_unknown_kids_unavailable_not_invalid(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    publisher.away = True
    with pytest.raises(DependencyDown) as raised:
        await store.find_key("k1", "ES256")
    assert raised.value.retry_after_s == COOLDOWN_S
    asked = publisher.requests
    for _ in range(20):  # failures start the pause too
        await clock.advance(1.0)
        with pytest.raises(DependencyDown) as raised:
            await store.find_key("k1", "ES256")
    assert publisher.requests == asked
    assert raised.value.retry_after_s == COOLDOWN_S - 20
    publisher.away = False
    await clock.advance(10.0)
    assert await store.find_key("k1", "ES256") is not None


async def test_jwks_outage_of_a_day_expires_known_keys(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        publisher.away = True
        stale_at_s = store._fetched_at + STALE_S
        await pass_time(store, HOUR)
        assert store.failures > 100
    await clock.advance(STALE_S - 2 * HOUR)  # nobody asks in these hours: that is 5,000 requests
    async with running(store):
        await pass_time(store, stale_at_s - clock.monotonic() - 1.0)
        assert store.failures > 200
        assert store.cached_key("k1", "ES256") is not None
        await clock.advance(2.0)
        assert store.cached_key("k1", "ES256") is None
        with pytest.raises(DependencyDown):
            await store.find_key("k1", "ES256")


async def test_jwks_concurrent_fetches_share_one_request(store: JwksStore, publisher: Publisher) -> None:
    found = await asyncio.gather(*(store.find_key("k1", "ES256") for _ in range(1_000)))
    assert all(found)
    assert publisher.requests == 1


async def test_jwks_failure_is_not_chained_to_the_first_caller(
    store: JwksStore, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str | None] = []

    def note(_: logging.LogRecord) -> bool:
        told.append(request_id.get())
        return True

    caplog.handler.addFilter(note)
    publisher.away = True
    request_id.set("who asked first")
    with pytest.raises(DependencyDown):
        await store.find_key("k1", "ES256")
    assert told == [None]


async def test_jwks_fetch_survives_a_cancelled_caller(store: JwksStore) -> None:
    first, second = (asyncio.ensure_future(store.find_key("k1", "ES256")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is not None
    assert first.cancelled()


async def test_jwks_withdrawn_key_is_trusted_until_the_next_refresh(
    store: JwksStore, publisher: Publisher, clock: FakeClock
) -> None:
    async with running(store):
        publisher.body = document("k2")
        await clock.advance(REFRESH_S * 0.89)
        assert store.cached_key("k1", "ES256") is not None
        await pass_time(store, REFRESH_S * 0.22)
        assert store.cached_key("k2", "ES256") is not None
        assert store.cached_key("k1", "ES256") is None


async def test_jwks_refresh_has_jitter_of_a_tenth(store: JwksStore, clock: FakeClock) -> None:
    async with running(store):
        pauses = []
        for _ in range(40):
            pauses.append(clock.until_next_s())
            await pass_time(store, pauses[-1])
        assert store.fetches == 1 + len(pauses)
    assert min(pauses) >= REFRESH_S * 0.9
    assert max(pauses) <= REFRESH_S * 1.1
    assert max(pauses) - min(pauses) > 5


async def test_jwks_flush_requires_a_new_fetch(store: JwksStore, publisher: Publisher) -> None:
    async with running(store):
        publisher.away = True
        await store.flush()
        assert store.cached_key("k1", "ES256") is None
        with pytest.raises(DependencyDown):
            await store.find_key("k1", "ES256")
        publisher.away = False
        publisher.body = document("k2")
        await store.flush()
        assert store.cached_key("k2", "ES256") is not None
        assert await store.find_key("k1", "ES256") is None


async def test_jwks_fetch_uses_etag(store: JwksStore, publisher: Publisher, clock: FakeClock) -> None:
    sent = []

    async def answer(request: web.Request) -> web.StreamResponse:
        sent.append(request.headers.get("if-none-match"))
        if sent[-1] == '"v1"':
            return web.Response(status=304)
        return web.Response(body=publisher.body, headers={"etag": '"v1"'})

    publisher.answer = answer
    async with running(store):
        await pass_time(store, REFRESH_S * 1.1)
        assert sent == [None, '"v1"']
        assert store.failures == 0
        assert store.cached_key("k1", "ES256") is not None


async def redirect(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def endless(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(64):
        await answer.write(b" " * 16_384)
    return answer


async def bomb(_: web.Request) -> web.StreamResponse:
    return web.Response(body=gzip.compress(document("k1") + b" " * 9_000_000), headers={"content-encoding": "gzip"})


async def broken(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500, body=document("k1"))


def fixed(body: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        redirect,
        endless,
        bomb,
        broken,
        fixed(b"not json"),
        fixed(b"[]"),
        fixed(b'{"keys": {}}'),
        fixed(b"[" * 100_000),
        fixed(document(*(f"k{number}" for number in range(65)))),
    ],
    ids=[
        "redirect",
        "endless",
        "bomb",
        "500",
        "no JSON",
        "a list",
        "no list",
        "deep",
        "65 keys",
    ],
)
async def test_jwks_bad_response_is_a_failure(store: JwksStore, publisher: Publisher, answer: Any) -> None:
    publisher.answer = answer
    with pytest.raises(DependencyDown):
        await store.find_key("k1", "ES256")
    assert (store.fetches, store.failures, publisher.requests) == (1, 1, 1)
    assert store.cached_key("k1", "ES256") is None


async def slow(_: web.Request) -> web.StreamResponse:
    await asyncio.get_running_loop().create_future()
    return web.Response()


async def test_jwks_fetch_timeout_is_a_failure(publisher: Publisher, clock: FakeClock) -> None:
    store = JwksStore(publisher.url, ISSUER, clock, timeout_s=0.3)
    publisher.answer = slow
    with pytest.raises(DependencyDown):
        await store.find_key("k1", "ES256")
    assert (store.fetches, store.failures) == (1, 1)
    assert store.cached_key("k1", "ES256") is None
    await store.close()


async def test_jwks_bad_keys_are_skipped_and_others_used(store: JwksStore, publisher: Publisher) -> None:
    bad = [
        entry("for encryption", use="enc"),
        entry("of another curve", crv="P-384"),
        entry("of another type", kty="RSA"),
        {"kty": "oct", "kid": "symmetric", "alg": "HS256", "k": "c2VjcmV0"},
        entry(""),
    ]
    publisher.body = json.dumps({"keys": [*bad, entry("good")]}).encode()
    assert await store.find_key("good", "ES256") is not None
    assert store._kids == {"good"}


async def test_jwks_of_64_keys_is_parsed_without_blocking_the_loop(store: JwksStore, publisher: Publisher) -> None:
    publisher.body = document(*(f"k{number}" for number in range(64)))

    async def ask() -> None:
        for _ in range(5):
            await store.flush()
            assert await store.find_key("k63", "ES256") is not None

    assert await watched(ask()) < LAG_S


async def test_jwks_outage_is_logged_once_per_cause(
    store: JwksStore, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    known = publisher.body
    strange = [
        b"",
        b"[]",
        b"{}",
        b'{"keys": 5}',
        b"\xff\xfe",
        b"[" * 5_000,
        b'{"keys": [{"kid": 1, "n": []}]}',
        b"0" * 300_000,
    ]
    async with running(store) as task:
        for body in strange:
            publisher.body = body
            await pass_time(store, 400)
        publisher.away = True
        await pass_time(store, 400)
        publisher.away, publisher.body = False, known
        await pass_time(store, 400)
        assert not task.done()
    told = [record for record in caplog.records if record.name == "syncbeat_server.auth.tokens.jwks"]
    causes = [record.__dict__.get("fault", record.message) for record in told]
    assert all(one != other for one, other in itertools.pairwise(causes)), causes
    assert causes[-1] == "the keys of an issuer can be fetched again"
