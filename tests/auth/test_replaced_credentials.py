"""Credentials that are replaced while calls are checked: nobody is let in, or remembered, by those of before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.model import Issuer, KeyRow, Principal, PrincipalKind, VerifiedToken
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.tokens.bearer import Bearer, parse_bearer
from syncbeat_server.auth.tokens.keys import key_table
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.errors import TokenInvalid, TokenRevoked
from syncbeat_server.storage.postgres.database import Database
from tests.support.build import make_authenticator, make_caller_caches
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import FakeClock, wait_until

pytestmark = pytest.mark.store

ISSUER = Issuer("shop", "https://shop.example", uuid_subjects=False)
OLD, NEW = (KeyRow(ISSUER, kid, "HS256", kid * 16) for kid in ("old", "new"))
APPS = frozenset({"default", "shop"})


def credentials(*rows: KeyRow, apps: frozenset[str] = APPS) -> Credentials:
    return Credentials(key_table(rows), {}, {}, {}, apps)


@pytest.fixture
def caches(database: Database, clock: FakeClock) -> CallerCaches:
    return make_caller_caches(database, clock)


@pytest.fixture
def door(caches: CallerCaches, clock: FakeClock) -> Authenticator:
    return make_authenticator(credentials(OLD), caches, clock)


@pytest.fixture
def shown(clock: FakeClock) -> Bearer:
    token = mint(OLD, "ann", clock.now(), timedelta(minutes=10), session_id="s")
    return parse_bearer([f"Bearer {token}"])


@asynccontextmanager
async def account_status_held(urls: DatabaseUrls) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Keep the account of `ann`, who is not known yet, from being read to its end until the block is left."""
    holder = await asyncpg.connect(urls.admin_url)
    try:
        async with holder.transaction():
            await holder.execute("INSERT INTO users (app_id, user_id, created_at) VALUES ('shop', 'ann', now())")
            yield holder
    finally:
        await holder.close()


async def until_held(holder: asyncpg.Connection[asyncpg.Record]) -> None:
    async def waits() -> bool:
        return bool(await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await wait_until(waits)


@pytest.mark.parametrize("verified_before", [True, False])
async def test_token_whose_key_is_removed_while_it_is_checked_is_refused(
    door: Authenticator, shown: Bearer, database_urls: DatabaseUrls, *, verified_before: bool
) -> None:
    async with account_status_held(database_urls) as holder:
        token = door.try_sync(shown) if verified_before else None
        assert token is None or isinstance(token, VerifiedToken)
        checking = asyncio.ensure_future(door.authenticate(shown, token))
        await until_held(holder)
        door.adopt(credentials(NEW))
    with pytest.raises(TokenInvalid):
        await checking
    assert door.cached(shown) is None


async def test_token_verified_before_its_key_was_removed_is_refused(door: Authenticator, shown: Bearer) -> None:
    token = door.try_sync(shown)
    assert isinstance(token, VerifiedToken)
    door.adopt(credentials(NEW))
    with pytest.raises(TokenInvalid):
        await door.authenticate(shown, token)


async def test_token_whose_key_stays_is_accepted_though_credentials_change_meanwhile(
    door: Authenticator, shown: Bearer, database_urls: DatabaseUrls
) -> None:
    async with account_status_held(database_urls) as holder:
        checking = asyncio.ensure_future(door.authenticate(shown))
        await until_held(holder)
        door.adopt(credentials(NEW, OLD))
    assert (await checking).name == "ann"
    assert door.cached(shown) is not None


async def test_stream_recheck_refuses_an_app_and_an_issuer_that_are_gone(
    door: Authenticator, shown: Bearer, clock: FakeClock
) -> None:
    user = await door.authenticate(shown)
    service = Principal(PrincipalKind.SERVICE, "backend", app_id="shop")
    for holder in (user, service):
        await door.recheck(holder)
    door.adopt(credentials(NEW))
    for holder in (user, service):  # the issuer is still there, with another key
        await door.recheck(holder)
    door.adopt(credentials(apps=frozenset({"default"})))
    for holder in (user, service):
        with pytest.raises(TokenRevoked):
            await door.recheck(holder)
    await door.recheck(Principal(PrincipalKind.SERVICE, "backend", app_id="default"))
    other = KeyRow(Issuer("default", ISSUER.name, uuid_subjects=False), "old", "HS256", "old" * 16)
    door.adopt(credentials(other))
    with pytest.raises(TokenRevoked):
        await door.recheck(user)
