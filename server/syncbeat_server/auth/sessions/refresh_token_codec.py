"""Encodes and decodes refresh tokens, which are derived and authenticated so that none needs to be stored. Pure.

A token is `sbr_` and the base64url of its parts and their HMAC-SHA256. A forged one is refused without asking the
database, and the successor of a token can be issued again if the response that carried it was lost.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import NamedTuple

from syncbeat_server.errors import TokenFault, TokenInvalid

MAX_BYTES = 2_048
_PREFIX = "sbr_"
_VERSION = 1
_MAC_BYTES = 32
_COUNTER_BYTES = 8
_LABEL = b"syncbeat refresh token v1"


class RefreshClaim(NamedTuple):
    """The content of a refresh token: it is number `counter` of a session."""

    app_id: str
    session_id: str
    counter: int


class RefreshKeys:
    """Secrets that authenticate refresh tokens: the first signs new ones, all verify."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        """Take the secrets by kid.

        Raises:
            ValueError: there is none.
        """
        if not secrets:
            raise ValueError("want one secret or more")
        # A derived key signs, so that a MAC made for another purpose with the same secret is worth nothing here.
        self._keys = {kid: hmac.digest(secret, _LABEL, hashlib.sha256) for kid, secret in secrets.items()}
        self._first = next(iter(self._keys))

    def encode(self, claim: RefreshClaim) -> str:
        """Return the refresh token of a claim; the same claim always gives the same token."""
        parts = (self._first, claim.session_id, claim.app_id)
        head = bytes([_VERSION]) + claim.counter.to_bytes(_COUNTER_BYTES) + b"".join(map(_length_prefixed, parts))
        return _PREFIX + _base64url(head + self._mac(self._first, head))

    def decode(self, token: str) -> RefreshClaim:
        """Return the claim of a refresh token.

        Raises:
            TokenInvalid: it was not made with one of these secrets.
        """
        invalid = TokenInvalid(
            "the refresh token is not valid", TokenFault.REFRESH_TOKEN, "not made with SYNCBEAT_SESSION_SECRETS"
        )
        octets = _base64url_decode(token)
        if octets is None or len(octets) <= _MAC_BYTES or octets[0] != _VERSION:
            raise invalid
        head, mac = octets[:-_MAC_BYTES], octets[-_MAC_BYTES:]
        try:
            kid, session_id, app_id = _split_texts(head[1 + _COUNTER_BYTES :])
        except ValueError:
            raise invalid from None
        if kid not in self._keys or not hmac.compare_digest(mac, self._mac(kid, head)):
            raise invalid
        return RefreshClaim(app_id, session_id, int.from_bytes(head[1 : 1 + _COUNTER_BYTES]))

    def _mac(self, kid: str, head: bytes) -> bytes:
        return hmac.digest(self._keys[kid], head, hashlib.sha256)


def _length_prefixed(text: str) -> bytes:
    octets = text.encode()
    return bytes([len(octets)]) + octets


def _split_texts(octets: bytes) -> tuple[str, str, str]:
    texts = []
    while octets:
        length = octets[0]
        if len(octets) <= length:
            raise ValueError
        texts.append(octets[1 : 1 + length].decode())
        octets = octets[1 + length :]
    kid, session_id, app_id = texts
    return kid, session_id, app_id


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _base64url_decode(token: str) -> bytes | None:
    body = token.removeprefix(_PREFIX)
    if len(token) > MAX_BYTES or body == token or not body.isascii():
        return None
    try:
        octets = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        return None
    # The decoder skips foreign characters and trailing bits; only the canonical spelling is a token.
    return octets if _base64url(octets) == body else None
