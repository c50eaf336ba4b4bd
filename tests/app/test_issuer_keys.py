"""Key stores of issuers that come and go: a new one is fetched, one that stays is kept, one that is gone is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from syncbeat_server.app.tenants.issuer_keys import IssuerKeys
from syncbeat_server.app.token_issuers import ConfiguredIssuer
from syncbeat_server.auth.model import Issuer
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
