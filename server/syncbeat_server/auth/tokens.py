"""Access tokens (JWT): reading, checking and minting them. Pure.

The algorithm is chosen by the key's row, never by the token's header, which only selects the row (RFC 8725, 3.1).
"""

from __future__ import annotations

import re
import uuid
from binascii import a2b_base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import jwt
import orjson

from syncbeat_server.auth.keys import ALGORITHMS
from syncbeat_server.auth.model import ROLE, Issuer, KeyRow, VerifiedToken
from syncbeat_server.errors import TokenExpired, TokenInvalid

MAX_TOKEN_BYTES = 8192
GENERATION, COUNTER, SESSION_ID = "gen", "ctr", "session_id"
RESERVED = frozenset({
    *("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", SESSION_ID, GENERATION, COUNTER),
    *("amr", "aal", "azp", "scope", "client_id", "app_metadata", "user_metadata", "is_anonymous"),
})  # fmt: skip
"""Claims that no caller may put into a session: RFC 7519's, and those that say who somebody is."""
_MAX_ID_BYTES = 128
_ALWAYS = frozenset({"exp", "iss", "sub"})
# Supabase signs its API keys with the users' secret and ships the first in every app: they are nobody.
_NOBODY = frozenset({"anon", "service_role"})
_SEGMENT = re.compile(r"[A-Za-z0-9_-]*")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# What a segment may end in, by its length modulo 4, for the bits that stand for nothing to be zero (RFC 4648, 3.5).
_LAST = ("", "", "AQgw", "AEIMQUYcgkosw048")
_KNOWN_HEADERS, _LONGEST_KEPT = 256, 512
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAX_COUNTER = 1 << 62


class UnverifiedToken(NamedTuple):
    """A token taken apart. Nothing of it is believed but which key's row it asks for."""

    signed: bytes
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signature: bytes
    issuer: str
    kid: str


def read(token: str) -> UnverifiedToken:
    """Take a token apart.

    Raises:
        TokenInvalid: it is none; the message says nothing that helps to forge one.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid("the access token is too long")
    signed, header, claims, signature = _parts(token)
    kid, issuer = header.get("kid", ""), claims.get("iss")
    if not isinstance(kid, str) or not isinstance(issuer, str):
        raise TokenInvalid("the access token is malformed")
    return UnverifiedToken(signed, header, claims, signature, issuer, kid)


def check(token: UnverifiedToken, row: KeyRow, now: datetime) -> VerifiedToken:
    """Check signature, audience, times, subject and role against the key's row.

    Raises:
        TokenExpired: everything is right but its time is over.
        TokenInvalid: anything else.
    """
    # RFC 7515, section 4.1.11: an extension that is critical and not understood spoils the token; none is here.
    header = token.header
    genuine = header.get("alg") == row.algorithm and "crit" not in header and "b64" not in header
    if not genuine or not ALGORITHMS[row.algorithm].verify(token.signed, row.key, token.signature):
        raise TokenInvalid("the access token is not valid")
    issuer, claims = row.issuer, token.claims
    if not (claims.keys() >= _ALWAYS and claims.keys() >= issuer.required):
        raise TokenInvalid("the access token is not valid")
    if "aud" in issuer.required and not _is_for(issuer.audience, claims["aud"]):
        raise TokenInvalid("the access token is not for this service")
    _check_role(issuer, claims.get("role"))
    return _checked(issuer, claims, now)


def _parts(token: str) -> tuple[bytes, Mapping[str, Any], dict[str, Any], bytes]:
    # PyJWT reads a token character by character, which costs ten times what checking its signature does. Only ASCII
    # base64url without padding, and no second spelling of the same octets, is a segment (RFC 7515, section 2).
    try:
        header, payload, signature = token.split(".")
        return f"{header}.{payload}".encode(), _header(header), _json_object(payload), _octets(signature)
    except ValueError:
        raise TokenInvalid("the access token is malformed") from None


def _header(segment: str) -> Mapping[str, Any]:
    # All tokens of a key have the same. Anybody can bring others: long ones are not kept.
    return _known_header(segment) if len(segment) <= _LONGEST_KEPT else _json_object(segment)


@lru_cache(_KNOWN_HEADERS)
def _known_header(segment: str) -> Mapping[str, Any]:
    return _json_object(segment)


def _json_object(segment: str) -> dict[str, Any]:
    found = orjson.loads(_octets(segment))
    if not isinstance(found, dict):
        raise ValueError
    return found


def _octets(segment: str) -> bytes:
    over = len(segment) % 4
    if not _SEGMENT.fullmatch(segment) or (over and segment[-1] not in _LAST[over]):
        raise ValueError
    return a2b_base64(segment.encode().translate(_TO_STANDARD) + b"==")


def _is_for(audience: str, claimed: object) -> bool:
    if isinstance(claimed, list) and all(isinstance(one, str) for one in claimed):
        return audience in claimed
    return claimed == audience


def _check_role(issuer: Issuer, role: object) -> None:
    if isinstance(role, str) and role in _NOBODY:
        raise TokenInvalid("an API key is not a user's token")
    if "role" in issuer.required and (not isinstance(role, str) or role not in issuer.roles):
        raise TokenInvalid("the access token's role is none of a user")


def _checked(issuer: Issuer, claims: Mapping[str, Any], now: datetime) -> VerifiedToken:
    subject = claims["sub"]
    if not isinstance(subject, str) or not is_user_id(issuer, subject):
        raise TokenInvalid("the access token has no usable subject")
    session_id = claims.get(SESSION_ID, "")
    if not isinstance(session_id, str) or (SESSION_ID in issuer.required and not _is_id(session_id)):
        raise TokenInvalid("the access token has no usable session")
    expires_at = _time(claims["exp"])
    issued_at = _time(claims["iat"]) if "iat" in claims else None
    not_before = _time(claims["nbf"]) if "nbf" in claims else None
    latest = now + issuer.leeway
    if (issued_at is not None and issued_at > latest) or (not_before is not None and not_before > latest):
        raise TokenInvalid("the access token is not valid yet")
    if expires_at <= now - issuer.leeway:
        raise TokenExpired("the access token has expired")
    if not issuer.own:
        return VerifiedToken(issuer, subject, session_id, issued_at, expires_at)
    generation, counter = _number(claims.get(GENERATION)), _number(claims.get(COUNTER))
    return VerifiedToken(issuer, subject, session_id, issued_at, expires_at, generation, counter)


def is_user_id(issuer: Issuer, text: str) -> bool:
    """Whether an issuer's tokens may name a user like this."""
    return _is_id(text) and (not issuer.uuid_subjects or _UUID.fullmatch(text) is not None)


def _is_id(text: str) -> bool:
    # What is not printable goes first: half a surrogate pair, which JSON can hold, cannot be encoded.
    return text.isprintable() and 0 < len(text.encode()) <= _MAX_ID_BYTES


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNTER:
        raise TokenInvalid("the access token has a number out of range")
    return value


def _time(value: object) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenInvalid("the access token has a time that is no number")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise TokenInvalid("the access token has a time out of range") from None


def mint(
    row: KeyRow,
    user_id: str,
    now: datetime,
    life: timedelta,
    *,
    session_id: str = "",
    claims: Mapping[str, str | int] | None = None,
) -> str:
    """A signed access token for `user_id`, valid for `life` from `now`; without a session_id, of one nobody knows.

    Raises:
        ValueError: `user_id` is none that `check` lets in.
    """
    if not is_user_id(row.issuer, user_id):
        raise ValueError(
            f"a user id is {'a UUID' if row.issuer.uuid_subjects else f'printable text of 1 to {_MAX_ID_BYTES} bytes'}"
        )
    said: dict[str, str | int] = {
        **(claims or {}),
        "iss": row.issuer.name,
        "aud": row.issuer.audience,
        "sub": user_id,
        "iat": int(now.timestamp()),
        "exp": int((now + life).timestamp()),
        "role": ROLE,
        SESSION_ID: session_id or str(uuid.uuid4()),
    }
    return jwt.encode(said, row.key, algorithm=row.algorithm, headers={"kid": row.kid})
