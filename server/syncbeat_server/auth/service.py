"""Authenticates callers: a user's JWT, or the token or client certificate of a service or operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from syncbeat_server.auth.accounts.account_status_cache import CachedStatus
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.identities.link_tokens import verify_link_token
from syncbeat_server.auth.model import (
    Issuer,
    KeyRow,
    LinkGrant,
    Principal,
    PrincipalKind,
    ProvenIdentity,
    VerifiedToken,
)
from syncbeat_server.auth.tokens.bearer import Bearer
from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.auth.tokens.keys import KeyTable, find_key
from syncbeat_server.auth.tokens.redacted_claims import show, show_known
from syncbeat_server.auth.tokens.revocation import is_revoked
from syncbeat_server.auth.tokens.verify import UnverifiedToken, parse_token, verify_token
from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, TokenExpired, TokenFault, TokenInvalid, TokenRefused, TokenRevoked

_CALL_S = 120.0
"""Longer than any call takes from the check of its token to the end of the reading of its account status."""
_TRIES = 3


@dataclass(frozen=True)
class Credentials:
    """Credentials that are accepted, from the settings. They are replaced as a whole when the apps file changes.

    Attributes:
        keys: Keys of users' tokens that are given in the settings.
        jwks: Key stores of issuers that publish their keys, by issuer.
        tokens: Services and operators by the SHA-256 of their token.
        certificates: Services by the SAN of their client certificate.
        apps: The apps that are configured; None: not told, and no stream of a service ends for one that is gone.
    """

    keys: KeyTable
    jwks: Mapping[str, JwksStore]
    tokens: Mapping[bytes, Principal]
    certificates: Mapping[str, Principal]
    apps: frozenset[str] | None = None

    @cached_property
    def app_of_issuer(self) -> Mapping[str, str]:
        """The app of each issuer that has keys, by the issuer's name."""
        known = {row.issuer.name: row.issuer.app_id for row in self.keys.values()}
        return known | {name: store.issuer.app_id for name, store in self.jwks.items()}


class Authenticator:
    """Authenticates callers. Tokens that were verified within the last minute need no I/O and no signature check."""

    def __init__(self, credentials: Credentials, caches: CallerCaches, clock: Clock) -> None:
        self._credentials = credentials
        self._statuses = caches.statuses
        self._tokens = caches.tokens
        self._clock = clock
        self._adopted_at = float("-inf")

    def adopt(self, credentials: Credentials) -> None:
        """Go by these credentials from now on; tokens that are cached, but for services' own, stay until removed."""
        self._credentials = credentials
        self._adopted_at = self._clock.monotonic()

    def cached(self, bearer: Bearer) -> Principal | None:
        """Return the bearer of a token that is in the settings or in the cache; None otherwise."""
        return self._credentials.tokens.get(bearer.digest) or self._tokens.find(bearer.digest)

    def is_cached(self, bearer: Bearer) -> bool:
        """Tell if `cached` would find the bearer, without counting a hit or a miss."""
        return bearer.digest in self._credentials.tokens or self._tokens.has(bearer.digest)

    def try_sync(self, bearer: Bearer) -> Principal | VerifiedToken | None:
        """Verify a token that `cached` did not find, as far as that needs no I/O.

        Returns:
            The bearer; or the verified token if the account status is not cached; or None if the key has to be fetched.

        Raises:
            TokenInvalid, TokenExpired, TokenRevoked: as `authenticate`.
        """
        unverified = parse_token(bearer.token)
        row = self._key(unverified)
        if row is None:
            if unverified.issuer in self._credentials.jwks:
                return None
            raise self._unknown_key(unverified)
        token = verify_token(unverified, row, self._clock.now())
        status = self._statuses.cached(token)
        return token if status is None else self._accept(bearer, token, status)

    async def authenticate(self, bearer: Bearer, token: VerifiedToken | None = None, address: str = "") -> Principal:
        """Authenticate the caller at `address` by a token that `cached` did not find.

        `token` is what `try_sync` returned, if it verified the token already.

        Raises:
            TokenInvalid: the token is malformed, not genuine, or not for this service.
            TokenExpired: a user's token has expired.
            TokenRevoked: its user or session is deleted, disabled, ended or revoked.
            DependencyDown: the key or the account status cannot be read now.
        """
        by = self._credentials
        for _ in range(_TRIES):
            try:
                # One that `try_sync` verified may have been verified by the credentials before.
                given = token is not None and self._clock.monotonic() - self._adopted_at > _CALL_S
                verified = token if token is not None and given else await self._verify(bearer.token, address)
                status = await self._statuses.get(verified)
                if by is self._credentials:
                    return self._accept(bearer, verified, status)
            except (DependencyDown, TokenRefused):
                if by is self._credentials:
                    raise
            by, token = self._credentials, None  # they were replaced meanwhile: what they verified says nothing
        raise DependencyDown("the credentials known here change again and again")

    def authenticate_certificate(self, names: Sequence[str]) -> Principal:
        """Return the service whose client certificate has these subject alternative names.

        Raises:
            TokenInvalid: no configured service has one of them, or several have.
        """
        certificates = self._credentials.certificates
        found = {holder.name: holder for name in names if (holder := certificates.get(name)) is not None}
        if len(found) != 1:
            fault = TokenFault.UNKNOWN_CERTIFICATE if names else TokenFault.NO_CREDENTIALS
            detail = f"names of the certificate: {show(list(names))}" if names else "no `authorization` value came"
            raise TokenInvalid(
                "want exactly one authorization value, or the certificate of a service known here", fault, detail
            )
        return next(iter(found.values()))

    def issuers_of(self, app_id: str) -> Mapping[str, Issuer]:
        """Return the issuers of an app's tokens by name, without that of our own sessions."""
        by = self._credentials
        issuers = [row.issuer for row in by.keys.values()] + [store.issuer for store in by.jwks.values()]
        return {one.name: one for one in issuers if one.app_id == app_id and not one.own_sessions}

    async def prove_identity(self, text: str, address: str) -> ProvenIdentity:
        """Verify another issuer's access token for what it says, without looking for its user.

        Raises:
            TokenInvalid, TokenExpired: as `authenticate`; also for a token of our own sessions.
            DependencyDown: the key cannot be fetched now, or the credentials have just changed.
        """
        by = self._credentials
        token = await self._verify(text, address)
        if by is not self._credentials:
            raise DependencyDown("the credentials known here have just changed")
        if token.issuer.own_sessions:
            raise TokenInvalid("want an access token of another issuer", TokenFault.TYPE, "it is of our own sessions")
        claims = parse_token(text).claims
        email = claims.get("email")
        is_verified = isinstance(email, str) and claims.get("email_verified") is True
        return ProvenIdentity(token, str(email) if is_verified else "")

    def verify_link(self, text: str) -> LinkGrant:
        """Verify a link token. Raises TokenInvalid or TokenExpired."""
        return verify_link_token(text, self._credentials.keys, self._clock.now())

    async def recheck(self, principal: Principal, *, fresh: bool = True) -> None:
        """Check that the caller of an open stream is still accepted. Raises as `authenticate`.

        `fresh=False` accepts the cached account status, which is up to a minute old but ends on invalidation. The
        stream of a service names its app by the principal's `app_id`.
        """
        token, credentials = principal.token, self._credentials
        if token is None:
            if principal.app_id and credentials.apps is not None and principal.app_id not in credentials.apps:
                raise TokenRevoked("the app of this stream is not configured any more")
            return
        if credentials.app_of_issuer.get(token.issuer.name) != token.issuer.app_id:
            raise TokenRevoked("the issuer of the access token is not known any more")
        if self._clock.now() >= token.expires_at:
            raise TokenExpired("the access token has expired")
        status = (await self._statuses.get(token, fresh=fresh)).status
        if is_revoked(token, status) or status.user_id != principal.name:
            raise TokenRevoked("the access token has been revoked")

    def _accept(self, bearer: Bearer, token: VerifiedToken, status: CachedStatus) -> Principal:
        if is_revoked(token, status.status):
            refused = TokenRevoked("the access token has been revoked", TokenFault.REVOKED, _revocation(token, status))
            refused.issuer = token.issuer.name
            raise refused
        principal = Principal(
            PrincipalKind.USER,
            status.status.user_id,
            token.issuer.app_id,
            token.expires_at,
            token=token,
            tier=status.status.tier,
        )
        self._tokens.put(bearer.digest, principal, token, status)
        return principal

    async def _verify(self, text: str, address: str) -> VerifiedToken:
        unverified = parse_token(text)
        row, store = self._key(unverified), self._credentials.jwks.get(unverified.issuer)
        if row is None and store is not None:
            row = await store.find_key(unverified.header.kid, unverified.header.algorithm, address)
        if row is None:
            raise self._unknown_key(unverified)
        return verify_token(unverified, row, self._clock.now())

    def _key(self, token: UnverifiedToken) -> KeyRow | None:
        # The key of a token, if it is in memory.
        issuer, kid, algorithm = token.issuer, token.header.kid, token.header.algorithm
        store = self._credentials.jwks.get(issuer)
        if store is not None and store.has_kid(kid):
            return store.cached_key(kid, algorithm)
        row = find_key(self._credentials.keys, issuer, kid, algorithm)
        return row if row is not None or store is None else store.cached_key(kid, algorithm)

    def _unknown_key(self, token: UnverifiedToken) -> TokenInvalid:
        header, issuer = token.header, token.issuer
        configured = {kid for name, kid, _ in self._credentials.keys if name == issuer}
        store = self._credentials.jwks.get(issuer)
        message = "the access token is not from an issuer and key known here"
        if store is None and not configured:
            known = sorted({name for name, _, _ in self._credentials.keys} | self._credentials.jwks.keys())
            detail = f"`iss` is {show(issuer)}; known: {show_known(known)} (SYNCBEAT_JWT_ISSUER)"
            return TokenInvalid(message, TokenFault.UNKNOWN_ISSUER, detail)
        # A key is found without a kid too where it is the only one: that row is no kid of its own.
        kids = sorted((configured | (frozenset() if store is None else store.kids)) - {""})
        detail = (
            f"`kid` is {show(header.kid)}, `alg` {show(header.algorithm)}; the issuer's kids here: {show_known(kids)}"
        )
        refused = TokenInvalid(message, TokenFault.UNKNOWN_KEY, detail)
        refused.issuer = issuer
        return refused


def _revocation(token: VerifiedToken, status: CachedStatus) -> str:
    if not status.status.user_id:
        return "its subject is the id of another user and is not linked to it (SYNCBEAT_UNLINKED_SUBJECTS)"
    if not status.status.exists:
        return "its user is unknown here, or was deleted"
    if status.status.blocked:
        return "its user is disabled or deleted"
    return "its session has ended" if token.issuer.own_sessions else "issued before RevokeUser"
