"""Our own sessions: made for users whom a service has signed in, renewed by rotation, taken back."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import orjson

from syncbeat_server.auth.model import KeyRow, Session, SessionTokens
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshLimits
from syncbeat_server.auth.sessions.refresh_tokens import RefreshClaim, RefreshKeys
from syncbeat_server.auth.store import sessions as sessions_store
from syncbeat_server.auth.store import users
from syncbeat_server.auth.store.sessions import Times
from syncbeat_server.auth.tokens.lifetimes import Rotation, SessionRule, rotate
from syncbeat_server.auth.tokens.verify import COUNTER, GENERATION, RESERVED, is_user_id, mint
from syncbeat_server.clock import Clock
from syncbeat_server.errors import (
    AccessDenied,
    FieldViolation,
    InvalidRequest,
    NotConfigured,
    NotFound,
    SyncbeatError,
    TokenExpired,
    TokenInvalid,
    TokenRevoked,
)
from syncbeat_server.storage.idempotency import Answer, RequestKey, answer_once
from syncbeat_server.storage.postgres.database import Connection, Database, RowOwner

_log = logging.getLogger(__name__)

_KEPT_ENDED = timedelta(days=7)
_MAX_FORGOTTEN = 100
_MAX_CLAIMS_BYTES = 2_048
# Who signed in together does not come back together for ever: lives differ by up to this part.
_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Creation:
    """A session that is asked for, and the call that asks."""

    app_id: str
    user_id: str
    device_id: str
    claims: Mapping[str, str]
    caller: str
    request_id: str
    content_hash: bytes


class Signing(NamedTuple):
    """What makes the tokens of sessions: the key of each app's access tokens, and the secrets of refresh tokens."""

    access: Mapping[str, KeyRow]
    refresh: RefreshKeys


class SessionService:
    """Creates, renews and revokes sessions. Callers' standings change only here and in the user's lifecycle."""

    def __init__(
        self,
        database: Database,
        signing: Signing | None,
        rule: SessionRule,
        clock: Clock,
        told: Callable[[str, str], None],
        limits: RefreshLimits,
    ) -> None:
        """`told(app, user)` is called after each commit that changes how a user or a session stands."""
        self._database = database
        self._signing = signing
        self._rule = rule
        self._clock = clock
        self._told = told
        self._limits = limits
        self._renewals: dict[RefreshClaim, asyncio.Task[SessionTokens]] = {}
        self._spread = random.SystemRandom().uniform

    async def create(self, new: Creation) -> SessionTokens:
        """Make a session for a user who has been signed in; a deleted one begins anew.

        Raises:
            AccessDenied: the user is disabled.
            InvalidRequest: a claim is reserved, or the user's id is none that the app's tokens may name.
            NotConfigured: there are no keys to sign sessions with.
        """
        signing = self._configured()
        _check_claims(new.claims)
        if not is_user_id(signing.access[new.app_id].issuer, new.user_id):
            raise InvalidRequest(FieldViolation("user_id", "not a user id as SYNCBEAT_JWT_SUBJECTS has them"))
        key = RequestKey.of(new.app_id, new.caller, "CreateSession", new.request_id, new.content_hash)
        async with self._database.transaction() as conn:

            async def carry_out(_indexes: object) -> list[str | SyncbeatError]:
                return [await self._add(conn, new)]

            (answer,) = await answer_once(conn, [key], carry_out)
        if isinstance(answer, SyncbeatError):
            raise answer
        if not answer.replayed:
            self._told(new.app_id, new.user_id)
        return self._first_tokens(signing, new, answer)

    async def refresh(self, text: str, address: str) -> SessionTokens:
        """Spend a refresh token for the next tokens of its session; `address` is who brings it.

        Callers who hold the same token share one answer, one connection to the database and one count of the limit.

        Raises:
            RateLimited: its session is refreshed too often; of one not made here, the address brings too many.
            TokenInvalid: it was not made here.
            TokenExpired: its time, or its session's, is over.
            TokenRevoked: its session has ended, or ends now, because the token was spent before: it was stolen.
        """
        signing = self._configured()
        claim = self._genuine(signing, text, address)
        task = self._renewals.get(claim)
        if task is None:
            self._limits.renewal(claim.app_id, claim.session_id)
            task = asyncio.get_running_loop().create_task(self._renew(signing, claim))
            self._renewals[claim] = task
            task.add_done_callback(lambda done: self._renewed(claim, done))
        return await asyncio.shield(task)

    async def revoke(self, app_id: str, user_id: str, session_id: str, *, by_user: bool) -> None:
        """End a session. Raises AccessDenied (a user) or NotFound (a service) when it is not there."""
        async with self._database.transaction(RowOwner(app_id, user_id) if by_user else None) as conn:
            found = await sessions_store.revoke_session(conn, app_id, session_id, user_id, "REVOKED")
        if not found:
            raise AccessDenied("not a session of this user") if by_user else NotFound("there is no such session")
        self._told(app_id, user_id)

    async def revoke_user(self, app_id: str, user_id: str, reason: str) -> tuple[datetime, int]:
        """End all sessions of a user and all tokens that others issued for it so far: when, and how many sessions."""
        async with self._database.transaction() as conn:
            revoked = await users.revoke_user(conn, app_id, user_id, reason)
            count = await sessions_store.revoke_sessions(conn, app_id, user_id, "USER_REVOKED")
        self._told(app_id, user_id)
        return revoked.revoked_at, count

    async def sessions(self, app_id: str, user_id: str, before: str, limit: int, *, by_user: bool) -> list[Session]:
        """A user's sessions that have not ended, newest first."""
        async with self._database.transaction(RowOwner(app_id, user_id) if by_user else None) as conn:
            return await sessions_store.list_sessions(conn, app_id, user_id, before, limit)

    def _configured(self) -> Signing:
        if self._signing is None:
            raise NotConfigured("sessions need SYNCBEAT_SESSION_KEYS and SYNCBEAT_SESSION_SECRETS")
        return self._signing

    async def _add(self, conn: Connection, new: Creation) -> str | SyncbeatError:
        # The user's row is locked first: a revocation comes before this session or sees it.
        generation = await users.lock_for_session(conn, new.app_id, new.user_id)
        if generation is None:
            return AccessDenied("this user is disabled")
        await sessions_store.forget_ended(conn, new.app_id, new.user_id, _KEPT_ENDED, _MAX_FORGOTTEN)
        await sessions_store.revoke_sessions(conn, new.app_id, new.user_id, "TOO_MANY", keep=self._rule.per_user - 1)
        rule = self._rule
        session_id, times = await sessions_store.add_session(
            conn,
            sessions_store.NewSession(
                new.app_id, new.user_id, new.device_id, new.claims, generation, rule.idle_s, rule.max_s
            ),
        )
        # Kept for replays. No token is: they are made again from this.
        kept = {name: getattr(times, name).timestamp() for name in ("now", "idle_until", "expires_at")}
        return orjson.dumps({"session_id": session_id, "generation": generation, **kept}).decode()

    def _first_tokens(self, signing: Signing, new: Creation, answer: Answer) -> SessionTokens:
        kept = orjson.loads(answer.text)
        times = Times(*(datetime.fromtimestamp(kept[name], UTC) for name in ("now", "idle_until", "expires_at")))
        if answer.replayed:
            times = replace(times, now=self._clock.now())
        claim = RefreshClaim(new.app_id, kept["session_id"], 0)
        tokens = self._tokens(signing, claim, new.user_id, new.claims, kept["generation"], times)
        return replace(tokens, replayed=answer.replayed)

    def _genuine(self, signing: Signing, text: str, address: str) -> RefreshClaim:
        # Nothing here asks the database, so that a flood of forged tokens costs an HMAC each.
        try:
            claim = signing.refresh.claim(text)
            if claim.app_id not in signing.access:
                raise TokenInvalid("the refresh token is not valid")
        except TokenInvalid:
            self._limits.forged(address)
            raise
        return claim

    async def _renew(self, signing: Signing, claim: RefreshClaim) -> SessionTokens:
        async with self._database.transaction() as conn:
            found = await sessions_store.lock_session(conn, claim.app_id, claim.session_id)
            if found is None:
                raise TokenRevoked("the session has ended")
            session, now = found
            rotation = rotate(session, claim.counter, now, self._rule)
            times = Times(now, session.idle_until, session.expires_at)
            if rotation is Rotation.NEXT:
                times = await sessions_store.advance(conn, claim.app_id, claim.session_id, self._rule.idle_s)
            elif rotation is Rotation.STOLEN:
                await sessions_store.revoke_session(conn, claim.app_id, claim.session_id, session.user_id, "REUSED")
        # Told after the commit: an error inside the transaction would take the revocation back.
        if rotation is Rotation.STOLEN:
            _log.warning("a spent refresh token came again", extra={"app": claim.app_id, "session": claim.session_id})
            self._told(claim.app_id, session.user_id)
        if rotation in (Rotation.STOLEN, Rotation.DEAD):
            raise TokenRevoked("the session has ended")
        if rotation is Rotation.EXPIRED:
            raise TokenExpired("the refresh token has expired")
        successor = claim._replace(counter=claim.counter + 1)
        return self._tokens(signing, successor, session.user_id, session.claims, session.generation, times)

    def _renewed(self, claim: RefreshClaim, task: asyncio.Task[SessionTokens]) -> None:
        del self._renewals[claim]
        if not task.cancelled():
            task.exception()  # where every caller has gone, nobody else asks

    def _tokens(
        self,
        signing: Signing,
        claim: RefreshClaim,
        user_id: str,
        claims: Mapping[str, str],
        generation: int,
        times: Times,
    ) -> SessionTokens:
        longest = timedelta(seconds=self._rule.access_s * self._spread(1 - _SPREAD, 1))
        life = min(longest, times.expires_at - times.now)
        said: dict[str, str | int] = {**claims, GENERATION: generation, COUNTER: claim.counter}
        row = signing.access[claim.app_id]
        return SessionTokens(
            session_id=claim.session_id,
            access_token=mint(row, user_id, times.now, life, session_id=claim.session_id, claims=said),
            access_expires_at=times.now + life,
            refresh_token=signing.refresh.token(claim),
            refresh_expires_at=min(times.idle_until, times.expires_at),
        )


def _check_claims(claims: Mapping[str, str]) -> None:
    reserved = [
        FieldViolation(f"claims[{orjson.dumps(name).decode()}]", "this claim is reserved")
        for name in sorted(claims.keys() & RESERVED)
    ]
    # They go into each access token, which is 8 KiB at most.
    if sum(len(name.encode()) + len(text.encode()) for name, text in claims.items()) > _MAX_CLAIMS_BYTES:
        reserved.append(FieldViolation("claims", f"at most {_MAX_CLAIMS_BYTES} bytes in all"))
    if reserved:
        raise InvalidRequest(*reserved)
