"""Turns the credentials of a call into a Principal: a user's JWT, a service's or operator's token or certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from syncbeat_server.auth.accounts.account_status_cache import KeptStanding, Standings
from syncbeat_server.auth.accounts.token_cache import CacheStats, TokenCache
from syncbeat_server.auth.model import KeyRow, Principal, PrincipalKind, VerifiedToken
from syncbeat_server.auth.tokens.bearer import Bearer
from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.auth.tokens.keys import KeyTable, row_in
from syncbeat_server.auth.tokens.lifetimes import is_dead
from syncbeat_server.auth.tokens.verify import UnverifiedToken, check, read
from syncbeat_server.clock import Clock
from syncbeat_server.errors import TokenExpired, TokenInvalid, TokenRevoked


@dataclass(frozen=True)
class Known:
    """Who and what is known before any call.

    Attributes:
        keys: The keys that stand in the settings.
        jwks: The keys of issuers that publish them, by issuer.
        holders: Who holds a service or admin token, by the SHA-256 of it.
        certified: Who shows a client certificate, by its SAN.
    """

    keys: KeyTable
    jwks: Mapping[str, JwksStore]
    holders: Mapping[bytes, Principal]
    certified: Mapping[str, Principal]


class Authenticator:
    """Checks who calls. What was checked within the minute is answered at once, without waiting for anybody."""

    def __init__(self, known: Known, standings: Standings, clock: Clock, cache_size: int) -> None:
        self._known = known
        self._standings = standings
        self._clock = clock
        self._cache = TokenCache(clock, cache_size)

    def cached(self, bearer: Bearer) -> Principal | None:
        """The caller who shows a token, if it is known here without asking anybody."""
        return self._known.holders.get(bearer.digest) or self._cache.find(bearer.digest)

    def knows(self, bearer: Bearer) -> bool:
        """Tell if `cached` knows it now, without counting a look-up."""
        return bearer.digest in self._known.holders or self._cache.has(bearer.digest)

    def at_once(self, bearer: Bearer) -> Principal | VerifiedToken | None:
        """The caller who shows a token that `cached` does not know, where nobody has to be asked.

        Its token, which is genuine, where how its user stands has to be found out; None: its key has to be fetched.

        Raises:
            TokenInvalid, TokenExpired, TokenRevoked: as `authenticate`.
        """
        unverified = read(bearer.token)
        row = self._row(unverified)
        if row is None:
            if unverified.issuer in self._known.jwks:
                return None
            raise _no_key()
        token = check(unverified, row, self._clock.now())
        standing = self._standings.kept(token)
        return token if standing is None else self._accepted(bearer, token, standing)

    async def authenticate(self, bearer: Bearer, token: VerifiedToken | None = None, address: str = "") -> Principal:
        """The caller at `address` who shows a token that `cached` does not know; `token`: what `at_once` made of it.

        Raises:
            TokenInvalid: it is no token that is genuine and for this service.
            TokenExpired: it is a user's token whose time is over.
            TokenRevoked: its user or session is gone, shut out or revoked.
            DependencyDown: that cannot be found out now.
        """
        if token is None:
            token = await self._verify(bearer.token, address)
        return self._accepted(bearer, token, await self._standings.of(token))

    def certified(self, names: Sequence[str]) -> Principal:
        """The service whose client certificate has these names. Raises TokenInvalid when it is none known here."""
        found = {holder.name: holder for name in names if (holder := self._known.certified.get(name)) is not None}
        if len(found) != 1:
            raise TokenInvalid("want exactly one authorization value, or the certificate of a service known here")
        return next(iter(found.values()))

    async def recheck(self, principal: Principal, *, fresh: bool = True) -> None:
        """Check that a caller is still good whose call goes on, as a stream does. Raises as `authenticate`.

        Without `fresh` what is known here of its standing will do, for the minute that it is kept unless it changes.
        """
        token = principal.token
        if token is None:
            return
        if self._clock.now() >= token.expires_at:
            raise TokenExpired("the access token has expired")
        if is_dead(token, (await self._standings.of(token, fresh=fresh)).standing):
            raise TokenRevoked("the access token has been revoked")

    def revoked(self, app_id: str, user_id: str) -> None:
        """A user's tokens may have been taken back: how it stands is looked up anew."""
        self._standings.invalidate(app_id, user_id)

    def forget(self, app_id: str, user_id: str, session_id: str) -> int:
        """Check the tokens of a user or of a session anew (either may be empty): how many were known here."""
        if user_id:
            self._standings.invalidate(app_id, user_id)
        else:
            self._standings.invalidate_session(app_id, session_id)
        return self._cache.forget(app_id, user_id, session_id)

    def forget_all(self, app_id: str | None = None) -> int:
        """Check everybody's tokens anew, of one app or of all."""
        self._standings.invalidate_app(app_id)
        return self._cache.forget(app_id)

    def stores_of(self, app_id: str) -> list[JwksStore]:
        """The key stores of an app's issuers."""
        return [store for store in self._known.jwks.values() if store.issuer.app_id == app_id]

    def stats(self) -> CacheStats:
        """How well the cache of checked tokens works."""
        return self._cache.stats()

    def _accepted(self, bearer: Bearer, token: VerifiedToken, standing: KeptStanding) -> Principal:
        if is_dead(token, standing.standing):
            raise TokenRevoked("the access token has been revoked")
        principal = Principal(
            PrincipalKind.USER, token.user_id, app_id=token.issuer.app_id, expires_at=token.expires_at, token=token
        )
        self._cache.keep(bearer.digest, principal, token, standing)
        return principal

    async def _verify(self, text: str, address: str) -> VerifiedToken:
        unverified = read(text)
        row, store = self._row(unverified), self._known.jwks.get(unverified.issuer)
        if row is None and store is not None:
            row = await store.find(unverified.header.kid, unverified.header.algorithm, address)
        if row is None:
            raise _no_key()
        return check(unverified, row, self._clock.now())

    def _row(self, token: UnverifiedToken) -> KeyRow | None:
        # Its key, if that is in memory.
        issuer, kid, algorithm = token.issuer, token.header.kid, token.header.algorithm
        store = self._known.jwks.get(issuer)
        if store is not None and store.publishes(kid):
            return store.row(kid, algorithm)
        row = row_in(self._known.keys, issuer, kid, algorithm)
        return row if row is not None or store is None else store.row(kid, algorithm)


def _no_key() -> TokenInvalid:
    return TokenInvalid("the access token is not from an issuer and key known here")
