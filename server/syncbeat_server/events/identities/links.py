"""Joins subjects of other issuers to users: by link tokens of a backend, or by verified e-mail addresses."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncbeat_server.audit.model import AuditAction, user_subject
from syncbeat_server.audit.record import record
from syncbeat_server.auth.identities.joining import (
    Join,
    check_join,
    require_joinable,
    user_by_email,
    write_join,
)
from syncbeat_server.auth.identities.link_tokens import sign_link_token
from syncbeat_server.auth.model import Identity, KeyRow, LinkGrant, ProvenIdentity, VerifiedToken, home_issuer
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.clock import Clock
from syncbeat_server.directory import user_erasure as directory
from syncbeat_server.errors import (
    AccessDenied,
    DependencyDown,
    FieldReason,
    FieldViolation,
    IdentityConflict,
    InvalidRequest,
    NotConfigured,
    TokenFault,
    TokenInvalid,
)
from syncbeat_server.ratelimit import erasure as ratelimit
from syncbeat_server.storage.postgres.database import Connection, Database

_TRIES = 3  # a first sign-in, and a second link of the same subject, may each come in between once
_ID_OCTETS = 16


@dataclass(frozen=True, slots=True)
class Linked:
    """Says which user a subject is, and if it was before."""

    user_id: str
    already: bool


class IdentityLinks:
    """Makes link tokens, and links subjects."""

    def __init__(
        self,
        database: Database,
        authenticator: Authenticator,
        signer_of: Callable[[str], KeyRow],
        clock: Clock,
        caller_changed: Callable[[str, str], None],
        limits: RefreshRateLimit,
    ) -> None:
        """Take the parts.

        `signer_of(app)` is the key that signs our sessions' tokens; `caller_changed(app, user)` makes caches and
        streams check a user again.
        """
        self._database = database
        self._authenticator = authenticator
        self._signer_of = signer_of
        self._clock = clock
        self._caller_changed = caller_changed
        self._limits = limits

    async def create_token(self, app_id: str, user_id: str, issuer: str, ttl: timedelta) -> tuple[str, datetime]:
        """Sign a link token, and record it. Returns the token and its expiry.

        Raises:
            AccessDenied: the app is not configured any more.
            IdentityConflict: the user has a subject at that issuer.
            InvalidRequest: the app has no such issuer, or its subjects are not linked.
            NotConfigured: there are no keys to sign with.
            NotFound: the user is unknown, disabled or deleted.
        """
        signer, issuers = self._signer_of(app_id), self._authenticator.issuers_of(app_id)
        found = issuers.get(issuer)
        if found is None or not found.identity_issuer:
            detail = "no issuer of the app whose subjects are linked"
            raise InvalidRequest(FieldViolation("issuer", detail, FieldReason.UNKNOWN_VALUE))
        now = self._clock.now()
        link_id, expires_at = secrets.token_hex(_ID_OCTETS), now + ttl
        async with self._database.transaction() as conn:
            generation = await require_joinable(conn, app_id, user_id, issuer, home_issuer(issuers.values()))
            subject, action = user_subject(user_id), AuditAction.LINK_TOKEN_ISSUED
            await record(conn, app_id, action, subject, issuer=issuer, link_id=link_id, expires=expires_at.isoformat())
        grant = LinkGrant(app_id, user_id, issuer, link_id, generation, expires_at)
        return sign_link_token(signer, grant, now), expires_at

    async def link(self, access_token: str, link_token: str, address: str) -> Linked:
        """Link the subject of an access token by a link token; by a verified e-mail address if that is empty.

        Raises:
            AccessDenied: by e-mail, and the token has no verified address.
            DependencyDown: the issuer's key cannot be fetched now.
            IdentityConflict: it would join two people.
            NotConfigured: by e-mail, and no pair with this issuer is named.
            NotFound: by e-mail, and not exactly one user has the address.
            RateLimited: the address sends too many bad tokens, or the subject is linked too often.
            TokenInvalid, TokenExpired, TokenRevoked: a token is refused.
        """
        try:
            proof = await self._authenticator.prove_identity(access_token, address)
            grant = self._grant(link_token, proof.token) if link_token else None
        except TokenInvalid:
            self._limits.count_forged(address)
            raise
        issuer = proof.token.issuer
        self._limits.count_link(issuer.app_id, issuer.name, proof.token.subject)
        for _ in range(_TRIES):
            async with self._database.transaction() as conn:
                join = await self._join(conn, proof, grant)
                linked = await self._link(conn, proof.token, join)
            if linked is not None:
                if not linked.already:
                    self._caller_changed(issuer.app_id, linked.user_id)
                    self._caller_changed(issuer.app_id, proof.token.subject)
                return linked
        raise DependencyDown("others link this subject again and again")

    def _grant(self, link_token: str, token: VerifiedToken) -> LinkGrant:
        grant, issuer = self._authenticator.verify_link(link_token), token.issuer
        if (grant.app_id, grant.issuer) != (issuer.app_id, issuer.identity_issuer):
            detail = "it is for another app or issuer than the access token's"
            raise TokenInvalid("the link token is not for this", TokenFault.LINK_TOKEN, detail)
        return grant

    async def _join(self, conn: Connection, proof: ProvenIdentity, grant: LinkGrant | None) -> Join:
        issuer = proof.token.issuer
        identity = Identity(issuer.app_id, issuer.name, proof.token.subject)
        home = home_issuer(self._authenticator.issuers_of(issuer.app_id).values())
        if grant is not None:
            return Join(identity, grant.user_id, home, grant.link_id, grant.generation)
        if not issuer.email_joins:
            raise NotConfigured("joining by e-mail needs SYNCBEAT_EMAIL_JOINS of this issuer; or bring a link token")
        if not proof.verified_email:
            raise AccessDenied("the access token has no e-mail address that its issuer has verified")
        return Join(identity, await user_by_email(conn, issuer.app_id, issuer.email_joins, proof.verified_email), home)

    async def _link(self, conn: Connection, token: VerifiedToken, join: Join) -> Linked | None:
        app_id, issuer, subject = join.identity
        if await check_join(conn, token, join):
            return Linked(join.user_id, already=True)
        if subject != join.user_id and not (
            await directory.is_unused(conn, app_id, subject) and await ratelimit.is_unused(conn, app_id, subject)
        ):
            raise IdentityConflict("this subject is a user who has devices, scopes, preferences or a tier")
        if not await write_join(conn, join):
            return None
        details = {"issuer": issuer, "of_subject": subject, "by": join.linked_by.value, "link_id": join.link_id}
        await record(conn, app_id, AuditAction.IDENTITY_LINKED, user_subject(join.user_id), **details)
        return Linked(join.user_id, already=False)
