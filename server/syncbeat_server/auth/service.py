"""Turns the credentials of a call into a Principal."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.auth.tokens import LEEWAY, KeyTable, verify
from syncbeat_server.clock import Clock
from syncbeat_server.errors import TokenExpired, TokenInvalid

_CACHED = 20_000
_CACHED_FOR_S = 60.0
_MAX_CREDENTIAL_BYTES = 8192


class Authenticator:
    """Checks bearer tokens: users' JWTs by signature, service and admin tokens by digest."""

    def __init__(self, keys: KeyTable, tokens: Mapping[str, Principal], clock: Clock) -> None:
        """`tokens` maps the SHA-256 (hex) of each service and admin token to its holder."""
        self._keys = keys
        self._tokens = tokens
        self._clock = clock
        self._verified: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()

    def authenticate(self, authorization: Sequence[str]) -> Principal:
        """The caller behind the `authorization` metadata values.

        Raises:
            TokenInvalid: there is not exactly one value, or it is not a token known and valid here.
            TokenExpired: it is a user's token whose time is over.
        """
        if len(authorization) != 1:
            raise TokenInvalid("want exactly one authorization value")
        scheme, _, token = authorization[0].partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _MAX_CREDENTIAL_BYTES:
            raise TokenInvalid("want 'authorization: Bearer <token>'")
        digest = hashlib.sha256(token.encode()).digest()
        cached = self._verified.get(digest)
        if cached is not None and cached[1] > self._clock.monotonic():
            return self._unexpired(cached[0])
        holder = self._tokens.get(digest.hex())
        return holder if holder is not None else self._verify(token, digest)

    def _verify(self, token: str, digest: bytes) -> Principal:
        verified = verify(token, self._keys, self._clock.now())
        principal = Principal(
            PrincipalKind.USER, verified.user_id, app_id=verified.app_id, expires_at=verified.expires_at
        )
        self._verified[digest] = (principal, self._clock.monotonic() + _CACHED_FOR_S)
        self._verified.move_to_end(digest)
        if len(self._verified) > _CACHED:
            self._verified.popitem(last=False)
        return principal

    def _unexpired(self, principal: Principal) -> Principal:
        if principal.expires_at is not None and self._clock.now() >= principal.expires_at + LEEWAY:
            raise TokenExpired("the access token has expired")
        return principal
