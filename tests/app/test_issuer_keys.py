"""Key stores of issuers that come and go: a new one is fetched, one that stays is kept, one that is gone is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from syncbeat_server.app.tenants.issuer_keys import IssuerKeys
from syncbeat_server.app.token_issuers import ConfiguredIssuer
from syncbeat_server.auth.model import Issuer
from syncbeat_server.errors import DependencyDown
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.http_sites import site
from tests.support.jwks_publisher import Publisher

pytestmark = pytest.mark.http

REFRESHED_S = 400.0


def publishing(publisher: Publisher, name: str, tier_claim: str = "") -> ConfiguredIssuer:
    return ConfiguredIssuer(Issuer("shop", name, tier_claim=tier_claim), (), publisher.url, ())


@asynccontextmanager
async def publisher() -> AsyncIterator[Publisher]:
    made = Publisher()
    async with site("/{rest:.*}", made.handle) as address:
        made.url = f"{address}/jwks.json"
        yield made


@asynccontextmanager
async def running(keys: IssuerKeys) -> AsyncIterator[None]:
    task = asyncio.ensure_future(keys.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        await keys.close()


def use(keys: IssuerKeys, *issuers: ConfiguredIssuer) -> None:
    keys.use(keys.stores_of(issuers))


async def test_jwks_of_a_new_issuer_are_fetched_and_of_a_removed_one_no_more() -> None:
    clock = FakeClock()
    keys = IssuerKeys(clock)
    async with publisher() as first, publisher() as second, running(keys):
        use(keys, publishing(first, "one"))
        await wait_until(lambda: first.requests == 1 and clock.sleepers == 1)
        kept = keys.current["one"]
        use(keys, publishing(first, "one"), publishing(second, "two"))
        await wait_until(lambda: second.requests == 1 and clock.sleepers == 2)
        assert keys.current["one"] is kept
        assert first.requests == 1
        assert keys.failing() == []
        use(keys, publishing(second, "two"))
        await wait_until(lambda: clock.sleepers == 1, what="the store of the issuer that is gone has ended")
        await clock.advance(REFRESHED_S)
        await wait_until(lambda: second.requests == 2)
        assert first.requests == 1
        use(keys, publishing(first, "one"), publishing(second, "two"))
        await wait_until(lambda: first.requests == 2)
        assert keys.current["one"] is not kept


async def test_jwks_are_kept_when_only_the_rules_of_their_issuer_change() -> None:
    clock = FakeClock()
    keys = IssuerKeys(clock)
    async with publisher() as one, running(keys):
        use(keys, publishing(one, "one"))
        await wait_until(lambda: keys.current["one"].has_kid("k1"))
        one.away = True
        changed = publishing(one, "one", tier_claim="plan")
        use(keys, changed)
        row = keys.current["one"].cached_key("k1", "ES256")
        assert row is not None
        assert row.issuer == changed.issuer
        use(keys, replace(changed, jwks_url=f"{one.url}/elsewhere"))
        assert keys.current["one"].cached_key("k1", "ES256") is None, "what another URL published says nothing"


async def test_caller_who_waits_for_the_keys_of_a_replaced_store_is_told_to_come_again() -> None:
    clock = FakeClock()
    keys = IssuerKeys(clock)
    asked, answers = asyncio.Event(), asyncio.Event()
    async with publisher() as one:
        document = one.answer

        async def slowly(request: web.Request) -> web.StreamResponse:
            asked.set()
            await answers.wait()
            return await document(request)

        one.answer = slowly
        async with running(keys):
            use(keys, publishing(one, "one"))
            waiting = asyncio.ensure_future(keys.current["one"].find_key("k2", "ES256"))
            flushing = asyncio.ensure_future(keys.current["one"].flush())
            await asked.wait()
            use(keys)
            with pytest.raises(DependencyDown) as told:
                await waiting
            assert told.value.retry_after_s
            await asyncio.wait([flushing])
            assert not flushing.cancelled(), "who orders a flush goes on"
            answers.set()


async def test_stores_of_a_change_that_is_undone_are_closed_and_not_taken_over_from() -> None:
    clock = FakeClock()
    keys = IssuerKeys(clock)
    async with publisher() as one, running(keys):
        use(keys, publishing(one, "one"))
        await wait_until(lambda: one.requests == 1 and clock.sleepers == 1)
        before = keys.current
        use(keys, publishing(one, "one", tier_claim="plan"))
        keys.use(before)
        again = keys.stores_of([publishing(one, "one", tier_claim="other")])
        assert again["one"].cached_key("k1", "ES256") is not None, "the keys of the store that has some"
        undone = keys.stores_of([publishing(one, "one", tier_claim="plan")])["one"]

        def is_made_anew() -> bool:
            return keys.stores_of([publishing(one, "one", tier_claim="plan")])["one"] is not undone

        await wait_until(is_made_anew, what="the store that was undone is kept no more")
