"""Access tokens (JWT): checking them against given keys and a given time, and minting them. Pure.

The algorithm is chosen by the key's row, never by the token's header, which only selects the row (RFC 8725, 3.1).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import orjson
from jwt.exceptions import PyJWTError

from syncbeat_server.errors import TokenExpired, TokenInvalid

LEEWAY = timedelta(seconds=30)
MAX_TOKEN_BYTES = 8192
_MAX_ID_BYTES = 128
_MAX_KEYS = 64
_ASYMMETRIC = {"RS256": "RSA", "ES256": "EC"}
# Supabase signs its API keys with the users' secret and ships the first in every app: they are nobody.
_NOBODY = frozenset({"anon", "service_role"})
_REQUIRED = frozenset({"exp", "iat", "iss", "aud", "sub"})
_SEGMENT = re.compile(r"[A-Za-z0-9_-]*")
# PyJWT's own, which do the cryptography and prepare the keys.
_ALGORITHMS = {name: jwt.get_algorithm_by_name(name) for name in ("HS256", *_ASYMMETRIC)}


@dataclass(frozen=True)
class KeyRow:
    """One key that may sign tokens of one issuer, with the only algorithm it is used for."""

    app_id: str
    issuer: str
    audience: str
    kid: str
    algorithm: str
    key: Any


@dataclass(frozen=True)
class VerifiedToken:
    """What a good token says."""

    app_id: str
    user_id: str
    expires_at: datetime


KeyTable = Mapping[tuple[str, str], KeyRow]


def key_table(rows: Iterable[KeyRow]) -> KeyTable:
    """The rows by (issuer, kid), their keys prepared for use.

    Raises:
        ValueError: a key is none for its algorithm, or too short for it (RFC 7518, sections 3.2 and 3.3).
    """
    return {(row.issuer, row.kid): replace(row, key=_prepared(row)) for row in rows}


def _prepared(row: KeyRow) -> Any:
    algorithm = _ALGORITHMS[row.algorithm]
    try:
        key = algorithm.prepare_key(row.key)
    except PyJWTError:
        raise ValueError(f"key {row.kid!r} is none for {row.algorithm}") from None
    if algorithm.check_key_length(key):
        raise ValueError(f"key {row.kid!r} is too short for {row.algorithm}")
    return key


def keys_of_jwks(document: bytes, *, app_id: str, issuer: str, audience: str) -> list[KeyRow]:
    """The signing keys of a JWKS document (RFC 7517): RS256 and ES256 only, at most 64.

    Raises:
        ValueError: it is no JWKS, or holds a key that must not be there (symmetric, too short, another algorithm).
    """
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError):
        raise ValueError("not a JWKS document") from None
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise ValueError(f"a JWKS holds a list of at most {_MAX_KEYS} keys")
    return [_key_of_jwk(entry, app_id, issuer, audience) for entry in entries]


def _key_of_jwk(entry: object, app_id: str, issuer: str, audience: str) -> KeyRow:
    if not isinstance(entry, dict):
        raise ValueError("each key of a JWKS is an object")
    kid, algorithm = entry.get("kid"), entry.get("alg", "")
    if not isinstance(kid, str) or not kid:
        raise ValueError("each key needs a kid")
    known = isinstance(algorithm, str) and algorithm in _ASYMMETRIC
    if not known or _ASYMMETRIC[algorithm] != entry.get("kty") or entry.get("use", "sig") != "sig":
        raise ValueError(f"key {kid!r}: want alg RS256 with kty RSA, or ES256 with EC, for signatures")
    try:
        public = jwt.PyJWK({k: v for k, v in entry.items() if k not in ("d", "p", "q", "dp", "dq", "qi")})
    except (PyJWTError, ValueError, TypeError):
        raise ValueError(f"key {kid!r} cannot be read") from None
    if algorithm == "RS256" and public.key.key_size < 2048:
        raise ValueError(f"key {kid!r}: RSA needs 2048 bits or more")
    return KeyRow(app_id, issuer, audience, kid, algorithm, public.key)


def verify(token: str, keys: KeyTable, now: datetime) -> VerifiedToken:
    """Check signature, issuer, audience, times and subject of an access token.

    Raises:
        TokenExpired: everything is right but its time is over.
        TokenInvalid: anything else; the message says nothing that helps to forge one.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenInvalid("the access token is too long")
    signed, header, claims, signature = _parts(token)
    kid, issuer = header.get("kid", ""), claims.get("iss")
    if not isinstance(kid, str) or not isinstance(issuer, str):
        raise TokenInvalid("the access token is malformed")
    row = keys.get((issuer, kid))
    if row is None:
        raise TokenInvalid("the access token is not from an issuer and key known here")
    # RFC 7515, section 4.1.11: an extension that is critical and not understood spoils the token; none is here.
    genuine = header.get("alg") == row.algorithm and "crit" not in header and "b64" not in header
    if not genuine or not _ALGORITHMS[row.algorithm].verify(signed, row.key, signature):
        raise TokenInvalid("the access token is not valid")
    if not claims.keys() >= _REQUIRED or not _is_for(row.audience, claims["aud"]):
        raise TokenInvalid("the access token is not valid")
    return _checked_claims(claims, row, now)


def _parts(token: str) -> tuple[bytes, dict[str, Any], dict[str, Any], bytes]:
    # PyJWT reads a token character by character, which costs ten times what checking its signature does. Only ASCII
    # base64url without padding, and no second spelling of the same octets, is a segment (RFC 7515, section 2).
    try:
        header, payload, signature = token.split(".")
        parts = orjson.loads(_octets(header)), orjson.loads(_octets(payload))
        octets = _octets(signature)
    except ValueError:
        raise TokenInvalid("the access token is malformed") from None
    if not all(isinstance(part, dict) for part in parts):
        raise TokenInvalid("the access token is malformed")
    return f"{header}.{payload}".encode(), *parts, octets


def _octets(segment: str) -> bytes:
    if not _SEGMENT.fullmatch(segment):
        raise ValueError
    octets = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(octets).rstrip(b"=") != segment.encode():
        raise ValueError
    return octets


def _is_for(audience: str, claimed: object) -> bool:
    if isinstance(claimed, list) and all(isinstance(one, str) for one in claimed):
        return audience in claimed
    return claimed == audience


def _checked_claims(claims: dict[str, Any], row: KeyRow, now: datetime) -> VerifiedToken:
    subject = claims["sub"]
    if not isinstance(subject, str) or not _is_user_id(subject):
        raise TokenInvalid("the access token has no usable subject")
    role = claims.get("role")
    if isinstance(role, str) and role in _NOBODY:
        raise TokenInvalid("an API key is not a user's token")
    expires_at, issued_at = _time(claims["exp"]), _time(claims["iat"])
    if issued_at > now + LEEWAY or ("nbf" in claims and _time(claims["nbf"]) > now + LEEWAY):
        raise TokenInvalid("the access token is not valid yet")
    if expires_at <= now - LEEWAY:
        raise TokenExpired("the access token has expired")
    return VerifiedToken(row.app_id, subject, expires_at)


def _is_user_id(text: str) -> bool:
    # What is not printable goes first: half a surrogate pair, which JSON can hold, cannot be encoded.
    return text.isprintable() and 0 < len(text.encode()) <= _MAX_ID_BYTES


def _time(value: object) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenInvalid("the access token has a time that is no number")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise TokenInvalid("the access token has a time out of range") from None


def mint(row: KeyRow, user_id: str, now: datetime, life: timedelta) -> str:
    """A signed access token for `user_id`, valid for `life` from `now`.

    Raises:
        ValueError: `user_id` is none that `verify` lets in.
    """
    if not _is_user_id(user_id):
        raise ValueError(f"a user id is printable text of 1 to {_MAX_ID_BYTES} bytes")
    claims = {
        "iss": row.issuer,
        "aud": row.audience,
        "sub": user_id,
        "iat": int(now.timestamp()),
        "exp": int((now + life).timestamp()),
        "role": "authenticated",
    }
    return jwt.encode(claims, row.key, algorithm=row.algorithm, headers={"kid": row.kid})
