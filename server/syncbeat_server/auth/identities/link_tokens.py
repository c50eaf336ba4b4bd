"""Signs and verifies link tokens: JWTs of a type of their own, which let a subject of another issuer join a user. Pure.

They are signed by the keys of our own sessions. Their type keeps them apart from access tokens in both directions
(RFC 8725, 3.11): neither is accepted as the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jwt

from syncbeat_server.auth.model import KeyRow, LinkGrant
from syncbeat_server.auth.tokens.claims import parse_numeric_date
from syncbeat_server.auth.tokens.keys import KeyTable, find_key
from syncbeat_server.auth.tokens.verify import has_valid_signature, parse_token
from syncbeat_server.errors import TokenExpired, TokenFault, TokenInvalid

LINK_TOKEN_TYPE = "link+jwt"  # noqa: S105  # no password
_APP, _GENERATION, _LINK_ID = "app", "gen", "jti"


def sign_link_token(row: KeyRow, grant: LinkGrant, now: datetime) -> str:
    """Return the link token of a grant."""
    claims: dict[str, str | int] = {
        "iss": row.issuer.name,
        "sub": grant.user_id,
        "aud": grant.issuer,
        _APP: grant.app_id,
        _LINK_ID: grant.link_id,
        _GENERATION: grant.generation,
        "iat": int(now.timestamp()),
        "exp": int(grant.expires_at.timestamp()),
    }
    return jwt.encode(claims, row.key, algorithm=row.algorithm, headers={"kid": row.kid, "typ": LINK_TOKEN_TYPE})


def verify_link_token(text: str, keys: KeyTable, now: datetime) -> LinkGrant:
    """Verify a link token by the public keys of our own sessions, and return its grant. Its time has no leeway.

    Raises:
        TokenInvalid: we did not sign it, or it is a token of another kind.
        TokenExpired: its time is over.
    """
    try:
        token = parse_token(text)
    except TokenInvalid as error:
        raise _invalid(error.detail) from None
    header = token.header
    row = find_key(keys, token.issuer, header.kid, header.algorithm)
    if row is None or not row.issuer.own_sessions:
        raise _invalid("its issuer, kid and algorithm are not those of a key in SYNCBEAT_SESSION_KEYS")
    if not has_valid_signature(token.signed, header, token.signature, row):
        raise _invalid("not made with a key of SYNCBEAT_SESSION_KEYS")
    if header.token_type != LINK_TOKEN_TYPE:
        raise _invalid(f"the header's `typ` is not {LINK_TOKEN_TYPE}")
    grant = _grant(token.claims)
    if grant.app_id != row.issuer.app_id:
        raise _invalid("it is of another app than its key")
    if grant.expires_at <= now:
        raise TokenExpired("the link token has expired", TokenFault.LINK_TOKEN, "it has expired")
    return grant


def _grant(claims: Mapping[str, Any]) -> LinkGrant:
    texts = [claims.get(name) for name in (_APP, "sub", "aud", _LINK_ID)]
    generation = claims.get(_GENERATION)
    if not all(isinstance(one, str) and one for one in texts) or type(generation) is not int:
        raise _invalid("a claim is missing")
    app_id, user_id, issuer, link_id = map(str, texts)
    return LinkGrant(app_id, user_id, issuer, link_id, generation, parse_numeric_date(claims.get("exp")))


def _invalid(detail: str) -> TokenInvalid:
    return TokenInvalid("the link token is not valid", TokenFault.LINK_TOKEN, detail)
