"""Access tokens (JWT): reading, checking and minting them. Pure.

The algorithm is chosen by the key's row, never by the token's header, which only selects the row (RFC 8725, 3.1).
"""

from __future__ import annotations

import re
import uuid
from binascii import a2b_base64
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import jwt
import orjson

from syncbeat_server.auth.model import ROLE, Issuer, KeyRow, VerifiedToken
from syncbeat_server.auth.tokens.claims import check_audience, check_kind, check_role, time_of
from syncbeat_server.auth.tokens.keys import ALGORITHMS, usual_name
from syncbeat_server.errors import TokenExpired, TokenInvalid

MAX_TOKEN_BYTES = 8192
GENERATION, COUNTER, SESSION_ID = "gen", "ctr", "session_id"
RESERVED = frozenset({
    *("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", SESSION_ID, GENERATION, COUNTER),
    *("amr", "aal", "azp", "scope", "client_id", "app_metadata", "user_metadata", "is_anonymous"),
})  # fmt: skip
"""Claims that no caller may put into a session: RFC 7519's, and those that say who somebody is."""
_MAX_ID_BYTES = 128
_SEGMENT = re.compile(r"[A-Za-z0-9_-]*")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# What a segment may end in, by its length modulo 4, for the bits that stand for nothing to be zero (RFC 4648, 3.5).
_LAST = ("", "", "AQgw", "AEIMQUYcgkosw048")
_KNOWN_HEADERS, _KNOWN_HEADER_BYTES = 256, 512
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAX_COUNTER = 1 << 62


class Header(NamedTuple):
    """The header of a token: the row of the key it asks for, and its kind (`typ`) in lower case."""

    kid: str
    algorithm: str
    kind: str


class UnverifiedToken(NamedTuple):
    """A token taken apart. Nothing of it is believed but which key's row it asks for."""

    signed: bytes
    header: Header
    claims: Mapping[str, Any]
    signature: bytes
    issuer: str


def read(token: str) -> UnverifiedToken:
    """Take a token apart.

    Raises:
        TokenInvalid: it is none; the message says nothing that helps to forge one.
    """
    signed, header, payload, signature = parts(token)
    try:
        claims = _json_object(payload)
    except ValueError:
        raise TokenInvalid("the access token is malformed") from None
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise TokenInvalid("the access token is malformed")
    return UnverifiedToken(signed, header, claims, signature, issuer)


def parts(token: str) -> tuple[bytes, Header, bytes, bytes]:
    """Split a token into its signed part, header, payload and signature (RFC 7515, compact serialization).

    Raises:
        TokenInvalid: it is none, or its header asks for what is not offered.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid("the access token is too long")
    # PyJWT reads a token character by character, which costs ten times what checking its signature does. Only ASCII
    # base64url without padding, and no second spelling of the same octets, is a segment (RFC 7515, section 2).
    try:
        header, payload, signature = token.split(".")
        found = _known_header(header) if len(header) <= _KNOWN_HEADER_BYTES else _header(header)
        return f"{header}.{payload}".encode(), found, _octets(payload), _octets(signature)
    except ValueError:
        raise TokenInvalid("the access token is malformed") from None


def is_genuine(signed: bytes, header: Header, signature: bytes, row: KeyRow) -> bool:
    """Verify that the key of this row has signed it, by the only algorithm it is used for."""
    return header.algorithm == row.algorithm and ALGORITHMS[row.algorithm].verify(signed, row.key, signature)


def check(token: UnverifiedToken, row: KeyRow, now: datetime) -> VerifiedToken:
    """Check signature, kind, audience, times, subject and role against the key's row.

    Raises:
        TokenExpired: everything is right but its time is over.
        TokenInvalid: anything else.
    """
    signed, header, claims, signature, _ = token
    if not is_genuine(signed, header, signature, row):
        raise TokenInvalid("the access token is not valid")
    issuer = row.issuer
    if not claims.keys() >= issuer.required:
        raise TokenInvalid("the access token is not valid")
    check_audience(issuer, claims)
    check_role(issuer, claims)
    latest = now + issuer.leeway
    check_kind(issuer, header.kind, claims, latest)
    return _checked(issuer, claims, now, latest)


@lru_cache(_KNOWN_HEADERS)
def _known_header(segment: str) -> Header:
    # All tokens of a key have the same.
    return _header(segment)


def _header(segment: str) -> Header:
    found = _json_object(_octets(segment))
    kid, algorithm, kind = found.get("kid", ""), found.get("alg"), found.get("typ", "JWT")
    if not isinstance(kid, str) or not isinstance(algorithm, str) or not isinstance(kind, str):
        raise ValueError
    # RFC 7515, section 4.1.11: an extension that is critical and not understood spoils the token; none is here.
    if "crit" in found or "b64" in found:
        raise ValueError
    return Header(kid, usual_name(algorithm), kind.lower().removeprefix("application/"))


def _json_object(octets: bytes) -> dict[str, Any]:
    found = orjson.loads(octets)
    if not isinstance(found, dict):
        raise ValueError
    return found


def _octets(segment: str) -> bytes:
    over = len(segment) % 4
    if not _SEGMENT.fullmatch(segment) or (over and segment[-1] not in _LAST[over]):
        raise ValueError
    return a2b_base64(segment.encode().translate(_TO_STANDARD) + b"==")


def _checked(issuer: Issuer, claims: Mapping[str, Any], now: datetime, latest: datetime) -> VerifiedToken:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not is_user_id(issuer, subject):
        raise TokenInvalid("the access token has no usable subject")
    session_id = claims.get(SESSION_ID, "")
    if SESSION_ID in claims and not (isinstance(session_id, str) and _is_id(session_id)):
        raise TokenInvalid("the access token has no usable session")
    expires_at = time_of(claims.get("exp"))
    issued_at = time_of(claims["iat"]) if "iat" in claims else None
    not_before = time_of(claims["nbf"]) if "nbf" in claims else None
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
    return _UUID.fullmatch(text) is not None if issuer.uuid_subjects else _is_id(text)


def _is_id(text: str) -> bool:
    # What is not printable goes first: half a surrogate pair, which JSON can hold, cannot be encoded.
    return text.isprintable() and 0 < len(text.encode()) <= _MAX_ID_BYTES


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNTER:
        raise TokenInvalid("the access token has a number out of range")
    return value


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
        "sub": user_id,
        "iat": int(now.timestamp()),
        "exp": int((now + life).timestamp()),
        "role": ROLE,
        SESSION_ID: session_id or str(uuid.uuid4()),
    }
    if row.issuer.audiences:
        said["aud"] = row.issuer.audiences[0]
    return jwt.encode(said, row.key, algorithm=row.algorithm, headers={"kid": row.kid})
