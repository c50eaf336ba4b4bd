"""What a caller shows: a bearer token (RFC 6750), and the digest by which it is known. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.auth.tokens.verify import MAX_TOKEN_BYTES
from syncbeat_server.errors import TokenInvalid


class Bearer(NamedTuple):
    """A token as it was shown, and its SHA-256."""

    token: str
    digest: bytes


def bearer_of(authorization: Sequence[str]) -> Bearer:
    """The token in the `authorization` values of a call.

    Raises:
        TokenInvalid: there is not exactly one value, or it is no bearer token.
    """
    if len(authorization) != 1:
        raise TokenInvalid("want exactly one authorization value")
    scheme, _, token = authorization[0].partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid("want 'authorization: Bearer <token>'")
    # Whatever else a metadata value may hold, a token is ASCII; what is not is no token and found nowhere.
    return Bearer(token, hashlib.sha256(token.encode(errors="replace")).digest())
