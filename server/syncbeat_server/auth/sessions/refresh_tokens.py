"""Refresh tokens: derived from what they stand for and authenticated, so that none needs to be stored. Pure.

A token is `sbr_` and the base64url of its parts and their HMAC-SHA256. So a forged one is refused before the database
is asked, and the successor of a token can be given again when the answer that carried it was lost.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import NamedTuple

from syncbeat_server.errors import TokenInvalid

MAX_BYTES = 2_048
_PREFIX = "sbr_"
_VERSION = 1
_MAC_BYTES = 32
_COUNTER_BYTES = 8
_LABEL = b"syncbeat refresh token v1"


class RefreshClaim(NamedTuple):
    """What a refresh token stands for: the counter-th token of a session."""

    app_id: str
    session_id: str
    counter: int


class RefreshKeys:
    """The secrets that authenticate refresh tokens: the first makes them, all check them."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        """`secrets` by kid. Raises ValueError when there is none."""
        if not secrets:
            raise ValueError("want one secret or more")
        # The secret itself signs nothing, so that it cannot be of use anywhere else.
        self._keys = {kid: hmac.digest(secret, _LABEL, hashlib.sha256) for kid, secret in secrets.items()}
        self._first = next(iter(self._keys))

    def token(self, claim: RefreshClaim) -> str:
        """The refresh token for a claim."""
        parts = (self._first, claim.session_id, claim.app_id)
        head = bytes([_VERSION]) + claim.counter.to_bytes(_COUNTER_BYTES) + b"".join(map(_with_length, parts))
        return _PREFIX + _encoded(head + self._mac(self._first, head))

    def claim(self, token: str) -> RefreshClaim:
        """What a refresh token stands for.

        Raises:
            TokenInvalid: it is none that was made with these secrets.
        """
        invalid = TokenInvalid("the refresh token is not valid")
        octets = _decoded(token)
        if octets is None or len(octets) <= _MAC_BYTES or octets[0] != _VERSION:
            raise invalid
        head, mac = octets[:-_MAC_BYTES], octets[-_MAC_BYTES:]
        try:
            kid, session_id, app_id = _texts(head[1 + _COUNTER_BYTES :])
        except ValueError:
            raise invalid from None
        if kid not in self._keys or not hmac.compare_digest(mac, self._mac(kid, head)):
            raise invalid
        return RefreshClaim(app_id, session_id, int.from_bytes(head[1 : 1 + _COUNTER_BYTES]))

    def _mac(self, kid: str, head: bytes) -> bytes:
        return hmac.digest(self._keys[kid], head, hashlib.sha256)


def _with_length(text: str) -> bytes:
    octets = text.encode()
    return bytes([len(octets)]) + octets


def _texts(octets: bytes) -> tuple[str, str, str]:
    texts = []
    while octets:
        length = octets[0]
        if len(octets) <= length:
            raise ValueError
        texts.append(octets[1 : 1 + length].decode())
        octets = octets[1 + length :]
    kid, session_id, app_id = texts
    return kid, session_id, app_id


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _decoded(token: str) -> bytes | None:
    body = token.removeprefix(_PREFIX)
    if len(token) > MAX_BYTES or body == token or not body.isascii():
        return None
    try:
        octets = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        return None
    # One spelling only: the decoder passes over what is not of its alphabet, and over bits at the end.
    return octets if _encoded(octets) == body else None
