"""Parses, verifies and mints access tokens (JWT). Pure.

The key's row determines the algorithm; the token's header only selects the row (RFC 8725, 3.1).
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

from syncbeat_server.auth.model import OPTIONAL_CLAIMS, ROLE, Issuer, KeyRow, VerifiedToken
from syncbeat_server.auth.tokens.claims import (
    check_audience,
    check_role,
    check_times,
    check_token_type,
    claim_at,
    claimed_tier,
)
from syncbeat_server.auth.tokens.keys import ALGORITHMS, canonical_algorithm
from syncbeat_server.errors import TokenFault, TokenInvalid, TokenRefused

MAX_TOKEN_BYTES = 8192
GENERATION, COUNTER, SESSION_ID = "gen", "ctr", "session_id"
RESERVED = frozenset(
    {
        *("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "role", SESSION_ID, GENERATION, COUNTER),
        *("amr", "aal", "azp", "scope", "client_id", "app_metadata", "user_metadata", "is_anonymous"),
    }
)
"""Claims that no caller may put into a session: those of RFC 7519, and those that identify the user."""
_MAX_ID_BYTES = 128
_SEGMENT = re.compile(r"[A-Za-z0-9_-]*")
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# Valid last characters of a segment by its length modulo 4, so that unused trailing bits are zero (RFC 4648, 3.5).
_LAST_CHARACTERS = ("", "", "AQgw", "AEIMQUYcgkosw048")
_CACHED_HEADERS, _CACHED_HEADER_BYTES = 256, 512
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAX_COUNTER = 1 << 62


class Header(NamedTuple):
    """The header of a token: the key it selects, and its type (`typ`) in lower case."""

    kid: str
    algorithm: str
    token_type: str


class UnverifiedToken(NamedTuple):
    """A parsed token whose signature has not been verified: it is trusted only to select a key."""

    signed: bytes
    header: Header
    claims: Mapping[str, Any]
    signature: bytes
    issuer: str


def parse_token(token: str) -> UnverifiedToken:
    """Parse a token without verifying it.

    Raises:
        TokenInvalid: it is malformed; the message does not help to forge one.
    """
    signed, header, payload, signature = split_token(token)
    try:
        claims = _json_object(payload)
    except ValueError:
        raise _malformed("its payload is no JSON object") from None
    issuer = claims.get("iss")
    if not isinstance(issuer, str):
        raise _malformed("it has no `iss`")
    return UnverifiedToken(signed, header, claims, signature, issuer)


def split_token(token: str) -> tuple[bytes, Header, bytes, bytes]:
    """Split a token into its signed part, header, payload and signature (RFC 7515, compact serialization).

    Raises:
        TokenInvalid: it is malformed, or its header asks for an extension.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid("the access token is too long", TokenFault.MALFORMED, f"longer than {MAX_TOKEN_BYTES} bytes")
    # PyJWT reads a token character by character, which costs ten times as much as verifying its signature. A segment
    # is unpadded base64url in its canonical spelling (RFC 7515, section 2).
    try:
        header, payload, signature = token.split(".")
        parsed = _cached_header(header) if len(header) <= _CACHED_HEADER_BYTES else _parse_header(header)
        return f"{header}.{payload}".encode(), parsed, _decode_segment(payload), _decode_segment(signature)
    except ValueError:
        raise _malformed("it is no JWT, and no token of a service or admin in the settings") from None


def _malformed(detail: str) -> TokenInvalid:
    return TokenInvalid("the access token is malformed", TokenFault.MALFORMED, detail)


def has_valid_signature(signed: bytes, header: Header, signature: bytes, row: KeyRow) -> bool:
    """Verify the signature with the key of this row, by the only algorithm the key is used for."""
    return header.algorithm == row.algorithm and ALGORITHMS[row.algorithm].verify(signed, row.key, signature)


def verify_token(token: UnverifiedToken, row: KeyRow, now: datetime) -> VerifiedToken:
    """Verify signature, type, audience, times, subject and role against the key's row.

    Raises:
        TokenExpired: the token is otherwise valid.
        TokenInvalid: any other check fails.
    """
    issuer = row.issuer
    try:
        _check_genuine(token, row)
        claims = token.claims
        check_audience(issuer, claims)
        check_role(issuer, claims)
        check_token_type(issuer, token.header.token_type, claims, now + issuer.leeway)
        return _check_identity(issuer, claims, now)
    except TokenRefused as refused:
        refused.issuer = issuer.name
        raise


def _check_genuine(token: UnverifiedToken, row: KeyRow) -> None:
    if not has_valid_signature(token.signed, token.header, token.signature, row):
        by = f"not made with the {row.algorithm} key {row.kid!a} of this issuer"
        raise TokenInvalid("the access token is not valid", TokenFault.SIGNATURE, by)
    if not token.claims.keys() >= row.issuer.required:
        missing = row.issuer.required - token.claims.keys()
        lacks = ",".join(sorted(missing))
        optional = missing <= OPTIONAL_CLAIMS | {"azp"}
        way_out = f"SYNCBEAT_JWT_OPTIONAL={lacks} lets in tokens without" if optional else "is it of another kind?"
        raise TokenInvalid("the access token is not valid", TokenFault.CLAIM_MISSING, f"it has no {lacks}; {way_out}")


@lru_cache(_CACHED_HEADERS)
def _cached_header(segment: str) -> Header:
    # All tokens signed by a key share one header.
    return _parse_header(segment)


def _parse_header(segment: str) -> Header:
    header = _json_object(_decode_segment(segment))
    kid, algorithm, token_type = header.get("kid", ""), header.get("alg"), header.get("typ", "JWT")
    if not isinstance(kid, str) or not isinstance(algorithm, str) or not isinstance(token_type, str):
        raise ValueError
    # An unknown critical extension invalidates the token (RFC 7515, section 4.1.11), and we support none.
    if "crit" in header or "b64" in header:
        raise ValueError
    return Header(kid, canonical_algorithm(algorithm), token_type.lower().removeprefix("application/"))


def _json_object(octets: bytes) -> dict[str, Any]:
    value = orjson.loads(octets)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _decode_segment(segment: str) -> bytes:
    remainder = len(segment) % 4
    if not _SEGMENT.fullmatch(segment) or (remainder and segment[-1] not in _LAST_CHARACTERS[remainder]):
        raise ValueError
    return a2b_base64(segment.encode().translate(_URL_SAFE_TO_STANDARD) + b"==")


def _check_identity(issuer: Issuer, claims: Mapping[str, Any], now: datetime) -> VerifiedToken:
    name = issuer.user_id_claim
    subject = claims.get(name)
    if name not in claims:
        subject = claim_at(name, claims)
        if subject is None:
            raise TokenInvalid("the access token has no usable subject", TokenFault.CLAIM_MISSING, f"it has no {name}")
    if not isinstance(subject, str) or not is_user_id(issuer, subject):
        wanted = (
            "a UUID (SYNCBEAT_JWT_SUBJECTS=any lets in others)" if issuer.uuid_subjects else "1 to 128 printable bytes"
        )
        detail = f"`{name}` is to be {wanted}"
        raise TokenInvalid("the access token has no usable subject", TokenFault.SUBJECT, detail)
    session_id = claims.get(SESSION_ID, "")
    if SESSION_ID in claims and not (isinstance(session_id, str) and _is_id(session_id)):
        detail = "`session_id` is to be 1 to 128 printable bytes"
        raise TokenInvalid("the access token has no usable session", TokenFault.SESSION, detail)
    issued_at, expires_at = check_times(issuer, claims, now)
    tier = claimed_tier(issuer.tier_claim, claims)
    if not issuer.own_sessions:
        return VerifiedToken(issuer, subject, session_id, issued_at, expires_at, tier=tier)
    generation, counter = _number(claims.get(GENERATION)), _number(claims.get(COUNTER))
    return VerifiedToken(issuer, subject, session_id, issued_at, expires_at, generation, counter, tier)


def is_user_id(issuer: Issuer, text: str) -> bool:
    """Tell if an issuer's tokens may name a user like this."""
    return _UUID.fullmatch(text) is not None if issuer.uuid_subjects else _is_id(text)


def _is_id(text: str) -> bool:
    # isprintable comes first: JSON can hold a lone surrogate, which cannot be encoded.
    return text.isprintable() and 0 < len(text.encode()) <= _MAX_ID_BYTES


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_COUNTER:
        raise TokenInvalid(
            "the access token has a number out of range", TokenFault.SESSION, "`gen` or `ctr` is no count"
        )
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
    """Return a signed access token for `user_id`, valid for `life` from `now`; without a `session_id`, of a random one.

    Raises:
        ValueError: `user_id` is not one that `verify_token` accepts.
    """
    if not is_user_id(row.issuer, user_id):
        raise ValueError(
            f"a user id is {'a UUID' if row.issuer.uuid_subjects else f'printable text of 1 to {_MAX_ID_BYTES} bytes'}"
        )
    all_claims: dict[str, str | int] = {
        **(claims or {}),
        "iss": row.issuer.name,
        "sub": user_id,
        "iat": int(now.timestamp()),
        "exp": int((now + life).timestamp()),
        "role": ROLE,
        SESSION_ID: session_id or str(uuid.uuid4()),
    }
    if row.issuer.audiences:
        all_claims["aud"] = row.issuer.audiences[0]
    return jwt.encode(all_claims, row.key, algorithm=row.algorithm, headers={"kid": row.kid})
