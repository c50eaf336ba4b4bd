"""Creates, refreshes and revokes our own sessions, for users whom a backend service has signed in."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import orjson

from syncbeat_server.audit.model import AuditAction, user_subject
from syncbeat_server.audit.record import record
from syncbeat_server.auth.accounts import user_access
from syncbeat_server.auth.model import KeyRow, Revocation, Session, SessionTimes, SessionTokens
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshClaim
from syncbeat_server.auth.sessions.rotation_and_reuse import Rotation, SessionRule, decide_rotation
from syncbeat_server.auth.sessions.signing import SigningKeys, check_claims, issue_tokens
from syncbeat_server.auth.store import sessions as sessions_store
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.verify import GENERATION, is_user_id
from syncbeat_server.clock import Clock
from syncbeat_server.errors import (
    AccessDenied,
    FieldReason,
    FieldViolation,
    InvalidRequest,
    NotConfigured,
    NotFound,
    SyncbeatError,
    TokenExpired,
    TokenFault,
    TokenInvalid,
    TokenRevoked,
)
from syncbeat_server.runtime.deadline import without_deadline
from syncbeat_server.storage.idempotency import Answer, RequestKey, answer_once
from syncbeat_server.storage.postgres.database import Connection, Database, RowOwner, leave_user_role

_log = logging.getLogger(__name__)

_ENDED_RETENTION = timedelta(days=7)
_MAX_DELETED = 100  # ended sessions of the user per creation, so that creating one stays cheap
# Access tokens live up to this fraction less, so that users who signed in together do not refresh together for ever.
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """A session to create, and the call that asks for it."""

    app_id: str
    user_id: str
    device_id: str
    claims: Mapping[str, str]
    caller: str
    request_id: str
    content_hash: bytes


class SessionService:
    """Creates, refreshes and revokes sessions. Account statuses change only here and in the user's lifecycle."""

    def __init__(
        self,
        database: Database,
        signing: SigningKeys | None,
        rule: SessionRule,
        clock: Clock,
        notify: Callable[[str, str], None],
        limits: RefreshRateLimit,
    ) -> None:
        """Take the parts; `signing` is None where sessions are not configured.

        `notify(app, user)` is called after each commit that changes an account status.
        """
        self._database = database
        self._signing = signing
        self._rule = rule
        self._clock = clock
        self._notify = notify
        self._limits = limits
        self._refreshes: dict[RefreshClaim, asyncio.Task[SessionTokens]] = {}
        self._uniform = random.SystemRandom().uniform

    def adopt(self, signing: SigningKeys | None) -> None:
        """Sign with these keys from now on."""
        self._signing = signing

    def signer_of(self, app_id: str) -> KeyRow:
        """Return the key that signs tokens for an app.

        Raises:
            AccessDenied: the app is not configured any more.
            NotConfigured: there are no keys to sign with.
        """
        signing = self._configured()
        if app_id not in signing.access:  # it left the apps file while the call was checked
            raise AccessDenied("this caller may not act for this app")
        return signing.access[app_id]

    async def create(self, new: SessionRequest) -> SessionTokens:
        """Create a session for a user whom a service has signed in. A deleted user becomes known again.

        Raises:
            AccessDenied: the user is disabled.
            InvalidRequest: a claim is reserved, or the user id is not one that the app's tokens may name.
            NotConfigured: there are no keys to sign sessions with.
        """
        signing = self._configured()
        check_claims(new.claims)
        if not is_user_id(self.signer_of(new.app_id).issuer, new.user_id):
            raise InvalidRequest(
                FieldViolation("user_id", "not a user id as SYNCBEAT_JWT_SUBJECTS has them", FieldReason.MALFORMED)
            )
        key = RequestKey.of(new.app_id, new.caller, "CreateSession", new.request_id, new.content_hash)
        async with self._database.transaction() as conn:

            async def execute(_indexes: object) -> list[str | SyncbeatError]:
                return [await self._insert(conn, new)]

            (answer,) = await answer_once(conn, [key], execute)
        if isinstance(answer, SyncbeatError):
            raise answer
        if not answer.replayed:
            self._notify(new.app_id, new.user_id)
        return self._issue_first(signing, new, answer)

    async def refresh(self, text: str, address: str) -> SessionTokens:
        """Exchange a refresh token for the next tokens of its session; `address` is the caller's.

        Concurrent callers with the same token share one answer, one transaction and one count of the rate limit.

        Raises:
            RateLimited: the session is refreshed too often, or the address sends too many forged tokens.
            TokenInvalid: we did not issue the token.
            TokenExpired: the token or its session has expired.
            TokenRevoked: the session has ended, or ends now because the token is reused and so must have been stolen.
        """
        signing = self._configured()
        claim = self._verify(signing, text, address)
        task = self._refreshes.get(claim)
        if task is None:
            self._limits.count_refresh(claim.app_id, claim.session_id)
            task = asyncio.get_running_loop().create_task(self._refresh(signing, claim), context=without_deadline())
            self._refreshes[claim] = task
            task.add_done_callback(lambda done: self._remove_refresh(claim, done))
        return await asyncio.shield(task)

    async def revoke(self, app_id: str, user_id: str, session_id: str, *, by_user: bool) -> None:
        """End a session, and record it; one that was revoked before is not recorded again.

        Raises:
            AccessDenied: a user names a session that is not its own.
            NotFound: a service names a session that does not exist.
        """
        async with self._database.transaction(RowOwner(app_id, user_id) if by_user else None) as conn:
            revoked = await sessions_store.revoke_session(conn, app_id, session_id, user_id, "REVOKED")
            if revoked is Revocation.NOW:
                if by_user:
                    await leave_user_role(conn)  # a user writes no entries
                subject = user_subject(user_id)
                await record(conn, app_id, AuditAction.SESSION_REVOKED, subject, session_id=session_id)
        if revoked is None:
            raise AccessDenied("not a session of this user") if by_user else NotFound("there is no such session")
        self._notify(app_id, user_id)

    async def revoke_user(self, app_id: str, user_id: str, reason: str) -> tuple[datetime, int]:
        """End all sessions of a user and revoke the tokens that other issuers issued for it so far.

        Returns:
            The time of the revocation, and the number of sessions.

        Raises:
            IdentityConflict: the id is a subject that is linked to another user.
        """
        async with self._database.transaction() as conn:
            revoked = await users.revoke_user(conn, app_id, user_id, reason)
            await user_access.require_user_id(conn, app_id, user_id)
            count = await sessions_store.revoke_sessions(conn, app_id, user_id, "USER_REVOKED")
            subject = user_subject(user_id)
            await record(conn, app_id, AuditAction.USER_REVOKED, subject, reason=reason, sessions=count)
        self._notify(app_id, user_id)
        return revoked.revoked_at, count

    async def list_sessions(
        self, app_id: str, user_id: str, before: str, limit: int, *, by_user: bool
    ) -> list[Session]:
        """Return a user's active sessions, newest first, those before the id `before` (empty: from the newest)."""
        async with self._database.transaction(RowOwner(app_id, user_id) if by_user else None) as conn:
            return await sessions_store.list_sessions(conn, app_id, user_id, before, limit)

    def _configured(self) -> SigningKeys:
        if self._signing is None:
            raise NotConfigured("sessions need SYNCBEAT_SESSION_KEYS and SYNCBEAT_SESSION_SECRETS")
        return self._signing

    async def _insert(self, conn: Connection, new: SessionRequest) -> str | SyncbeatError:
        # The user's row is locked first, so that a concurrent revocation either precedes this session or ends it.
        generation = await users.lock_user(conn, new.app_id, new.user_id)
        if generation is None:
            return AccessDenied("this user is disabled")
        await sessions_store.delete_ended(conn, new.app_id, new.user_id, _ENDED_RETENTION, _MAX_DELETED)
        await sessions_store.revoke_sessions(conn, new.app_id, new.user_id, "TOO_MANY", keep=self._rule.per_user - 1)
        rule = self._rule
        session_id, times = await sessions_store.insert_session(
            conn,
            sessions_store.NewSession(
                new.app_id, new.user_id, new.device_id, new.claims, generation, rule.idle_s, rule.max_s
            ),
        )
        # Stored as the answer of replays. It holds no token: those are derived again from this.
        stored = {name: getattr(times, name).timestamp() for name in ("now", "idle_until", "expires_at")}
        return orjson.dumps({"session_id": session_id, "generation": generation, **stored}).decode()

    def _issue_first(self, signing: SigningKeys, new: SessionRequest, answer: Answer) -> SessionTokens:
        stored = orjson.loads(answer.text)
        times = SessionTimes(
            *(datetime.fromtimestamp(stored[name], UTC) for name in ("now", "idle_until", "expires_at"))
        )
        if answer.replayed:
            times = replace(times, now=self._clock.now())
        claim = RefreshClaim(new.app_id, stored["session_id"], 0)
        tokens = self._issue(signing, claim, new.user_id, new.claims, stored["generation"], times)
        return replace(tokens, replayed=answer.replayed)

    def _verify(self, signing: SigningKeys, text: str, address: str) -> RefreshClaim:
        # Without the database, so that a flood of forged tokens costs an HMAC each.
        try:
            claim = signing.refresh.decode(text)
            if claim.app_id not in signing.access:
                raise TokenInvalid(
                    "the refresh token is not valid", TokenFault.REFRESH_TOKEN, "it is of an app without sessions"
                )
        except TokenInvalid:
            self._limits.count_forged(address)
            raise
        return claim

    async def _refresh(self, signing: SigningKeys, claim: RefreshClaim) -> SessionTokens:
        async with self._database.transaction() as conn:
            found = await sessions_store.lock_session(conn, claim.app_id, claim.session_id)
            if found is None:
                raise TokenRevoked("the session has ended", TokenFault.REFRESH_TOKEN, "its session is not kept")
            session, now = found
            rotation = decide_rotation(session, claim.counter, now, self._rule)
            times = SessionTimes(now, session.idle_until, session.expires_at)
            if rotation is Rotation.ROTATE:
                times = await sessions_store.advance_counter(conn, claim.app_id, claim.session_id, self._rule.idle_s)
            elif rotation is Rotation.REUSED:
                await sessions_store.revoke_session(conn, claim.app_id, claim.session_id, session.user_id, "REUSED")
                action, subject = AuditAction.REFRESH_TOKEN_REUSED, user_subject(session.user_id)
                await record(conn, claim.app_id, action, subject, session_id=claim.session_id)
        # Raised after the commit, because an error inside the transaction would roll back the revocation.
        if rotation is Rotation.REUSED:
            _log.warning("a spent refresh token came again", extra={"app": claim.app_id, "session": claim.session_id})
            self._notify(claim.app_id, session.user_id)
        if rotation in (Rotation.REUSED, Rotation.REVOKED):
            raise TokenRevoked("the session has ended", TokenFault.REFRESH_TOKEN, f"its session is {rotation.name}")
        if rotation is Rotation.EXPIRED:
            raise TokenExpired("the refresh token has expired", TokenFault.REFRESH_TOKEN, "it has expired")
        successor = claim._replace(counter=claim.counter + 1)
        return self._issue(signing, successor, session.user_id, session.claims, session.generation, times)

    def _remove_refresh(self, claim: RefreshClaim, task: asyncio.Task[SessionTokens]) -> None:
        del self._refreshes[claim]
        if not task.cancelled():
            task.exception()  # asyncio warns of an error that nobody retrieves; every waiting caller may have gone

    def _issue(
        self,
        keys: SigningKeys,
        claim: RefreshClaim,
        user_id: str,
        claims: Mapping[str, str],
        generation: int,
        times: SessionTimes,
    ) -> SessionTokens:
        max_life = timedelta(seconds=self._rule.access_s * self._uniform(1 - _JITTER, 1))
        return issue_tokens(keys, claim, user_id, {**claims, GENERATION: generation}, times, max_life)
