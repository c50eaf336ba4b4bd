"""The sessions of one process on a database of its own, as tests of sessions use them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_server.auth.model import Issuer, KeyRow, SessionTokens, StandingKey, VerifiedToken
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshLimits
from syncbeat_server.auth.sessions.refresh_tokens import RefreshKeys
from syncbeat_server.auth.sessions.service import Creation, SessionService, Signing
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.keys import key_table, new_signing_key, signing_keys
from syncbeat_server.auth.tokens.lifetimes import SessionRule, is_dead
from syncbeat_server.auth.tokens.verify import check, read
from syncbeat_server.errors import (
    SyncbeatError,
)
from syncbeat_server.storage.postgres.database import Database
from tests.support.fake_clock import FakeClock

ISSUER = Issuer("default", "syncbeat:default", own=True, uuid_subjects=False)


(SIGNER,) = signing_keys(new_signing_key("s1").decode(), ISSUER)


TABLE = key_table([KeyRow(ISSUER, SIGNER.kid, SIGNER.algorithm, SIGNER.key.public_key())])


SIGNING = Signing({"default": SIGNER}, RefreshKeys({"k1": b"s" * 32}))


RULE = SessionRule(access_s=600, idle_s=3_600, max_s=86_400, grace_s=30, per_user=5)


PER_MINUTE = 60


HOUR = 3_600.0


class House:
    """One process's sessions, and what it told others."""

    def __init__(self, database: Database, clock: FakeClock, signing: Signing | None = SIGNING) -> None:
        self.told: list[tuple[str, str]] = []
        self.database = database
        self.clock = clock
        limits = RefreshLimits(clock, PER_MINUTE, PER_MINUTE)
        self.sessions = SessionService(database, signing, RULE, clock, lambda *who: self.told.append(who), limits)

    async def create(self, user_id: str = "ann", **fields: Any) -> SessionTokens:
        made = Creation("default", user_id, "", {}, "service:backend", "", b"")
        return await self.sessions.create(replace(made, **fields))

    async def refresh(self, token: str) -> SessionTokens:
        return await self.sessions.refresh(token, "192.0.2.1")

    def verified(self, tokens: SessionTokens) -> VerifiedToken:
        unverified = read(tokens.access_token)
        return check(unverified, TABLE[unverified.issuer, SIGNER.kid, SIGNER.algorithm], self.clock.now())

    async def use(self, tokens: SessionTokens) -> bool:
        """Call with the access token: whether it is let in. It shows that the tokens have arrived."""
        token = self.verified(tokens)
        async with self.database.connection() as conn:
            key = StandingKey("default", token.user_id, token.session_id)
            (standing,) = await users.standings(conn, [key])
            await users.confirm_sessions(conn, [("default", token.session_id, token.counter)])
        return not is_dead(token, standing)

    async def outcome(self, tokens: SessionTokens) -> SessionTokens | SyncbeatError:
        """What a refresh comes to."""
        try:
            return await self.refresh(tokens.refresh_token)
        except SyncbeatError as error:
            return error


async def state(house: House, column: str) -> Any:
    async with house.database.connection() as conn:
        return await conn.fetchval(f"SELECT {column} FROM sessions")
