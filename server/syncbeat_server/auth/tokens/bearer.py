"""Extracts the bearer token (RFC 6750) of a call and its digest, which is its key in all caches. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.auth.tokens.verify import MAX_TOKEN_BYTES
from syncbeat_server.errors import TokenFault, TokenInvalid


class Bearer(NamedTuple):
    """A bearer token and its SHA-256."""

    token: str
    digest: bytes


def parse_bearer(authorization: Sequence[str]) -> Bearer:
    """Return the bearer token in the `authorization` values of a call.

    Raises:
        TokenInvalid: there is not exactly one value, or it is not a bearer token.
    """
    if len(authorization) != 1:
        raise TokenInvalid(
            "want exactly one authorization value", TokenFault.NO_BEARER, f"{len(authorization)} `authorization` values"
        )
    scheme, _, token = authorization[0].partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid(
            "want 'authorization: Bearer <token>'",
            TokenFault.NO_BEARER,
            "the `authorization` value is not 'Bearer ' with a token after it, or longer than 8 KiB",
        )
    # A token is ASCII. Metadata may hold other characters; their digest then matches no token.
    return Bearer(token, hashlib.sha256(token.encode(errors="replace")).digest())
