"""The sessions of one process on a database of its own, as tests of sessions use them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_server.auth.model import AccountKey, Issuer, KeyRow, SessionTokens, VerifiedToken
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.auth.sessions.refresh_tokens import RefreshKeys
from syncbeat_server.auth.sessions.service import SessionRequest, SessionService
from syncbeat_server.auth.sessions.signing import SigningKeys
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.keys import key_table, new_signing_key, parse_signing_keys
from syncbeat_server.auth.tokens.lifetimes import SessionRule, is_revoked
from syncbeat_server.auth.tokens.verify import parse_token, verify_token
from syncbeat_server.errors import (
    SyncbeatError,
)
from syncbeat_server.storage.postgres.database import Database
from tests.fakes import FakeClock

ISSUER = Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)


(SIGNER,) = parse_signing_keys(new_signing_key("s1").decode(), ISSUER)


TABLE = key_table([KeyRow(ISSUER, SIGNER.kid, SIGNER.algorithm, SIGNER.key.public_key())])


SIGNING = SigningKeys({"default": SIGNER}, RefreshKeys({"k1": b"s" * 32}))


RULE = SessionRule(access_s=600, idle_s=3_600, max_s=86_400, grace_s=30, per_user=5)


PER_MINUTE = 60


HOUR = 3_600.0


class House:
    """One process's sessions, and what it told others."""

    def __init__(self, database: Database, clock: FakeClock, signing: SigningKeys | None = SIGNING) -> None:
        self.told: list[tuple[str, str]] = []
        self.database = database
        self.clock = clock
        limits = RefreshRateLimit(clock, PER_MINUTE, PER_MINUTE)
        self.sessions = SessionService(database, signing, RULE, clock, lambda *who: self.told.append(who), limits)

    async def create(self, user_id: str = "ann", **fields: Any) -> SessionTokens:
        made = SessionRequest("default", user_id, "", {}, "service:backend", "", b"")
        return await self.sessions.create(replace(made, **fields))

    async def refresh(self, token: str) -> SessionTokens:
        return await self.sessions.refresh(token, "192.0.2.1")

    def verified(self, tokens: SessionTokens) -> VerifiedToken:
        unverified = parse_token(tokens.access_token)
        return verify_token(unverified, TABLE[unverified.issuer, SIGNER.kid, SIGNER.algorithm], self.clock.now())

    async def use(self, tokens: SessionTokens) -> bool:
        """Call with the access token: whether it is let in. It shows that the tokens have arrived."""
        token = self.verified(tokens)
        async with self.database.connection() as conn:
            key = AccountKey("default", token.user_id, token.session_id)
            (standing,) = await users.read_statuses(conn, [key])
            await users.confirm_counters(conn, [("default", token.session_id, token.counter)])
        return not is_revoked(token, standing)

    async def outcome(self, tokens: SessionTokens) -> SessionTokens | SyncbeatError:
        """What a refresh comes to."""
        try:
            return await self.refresh(tokens.refresh_token)
        except SyncbeatError as error:
            return error


async def state(house: House, column: str) -> Any:
    async with house.database.connection() as conn:
        return await conn.fetchval(f"SELECT {column} FROM sessions")
