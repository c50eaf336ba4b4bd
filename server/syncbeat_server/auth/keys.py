"""Keys that sign access tokens: reading and checking them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.exceptions import PyJWTError

from syncbeat_server.auth.model import Issuer, KeyRow

MAX_KEYS = 64
_MIN_RSA_BITS = 2048
# What RFC 7518 and RFC 8037 call the key types and curves. A key without an "alg" is used for the one of its type.
_ASYMMETRIC = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
_PRIVATE_PARTS = ("d", "p", "q", "dp", "dq", "qi", "oth")
ALGORITHMS = {name: jwt.get_algorithm_by_name(name) for name in ("HS256", *_ASYMMETRIC)}
"""PyJWT's own, which do the cryptography and prepare the keys."""

KeyTable = Mapping[tuple[str, str], KeyRow]
"""By (issuer, kid): the algorithm is that of the row, whatever a token's header says (RFC 8725, 3.1)."""


def key_table(rows: Iterable[KeyRow]) -> KeyTable:
    """The rows by (issuer, kid), their keys prepared for use.

    Raises:
        ValueError: a key is none for its algorithm, or too short for it (RFC 7518, sections 3.2 and 3.3).
    """
    return {(row.issuer.name, row.kid): replace(row, key=_prepared(row)) for row in rows}


def _prepared(row: KeyRow) -> Any:
    algorithm = ALGORITHMS[row.algorithm]
    try:
        key = algorithm.prepare_key(row.key)
    except (PyJWTError, ValueError, TypeError):
        raise ValueError(f"key {row.kid!r} is none for {row.algorithm}") from None
    if algorithm.check_key_length(key):
        raise ValueError(f"key {row.kid!r} is too short for {row.algorithm}")
    return key


def keys_of_jwks(document: bytes, issuer: Issuer) -> tuple[list[KeyRow], list[str]]:
    """The signing keys of a JWKS document (RFC 7517), and what is wrong with each entry that was left out.

    Raises:
        ValueError: it is no JWKS, or holds more than 64 entries.
    """
    rows, faults = [], []
    for entry in _entries(document):
        try:
            kid, algorithm, key = _read(entry, private=False)
            rows.append(KeyRow(issuer, kid, algorithm, key))
        except ValueError as error:
            faults.append(str(error))
    return rows, faults


def signing_keys(document: str, issuer: Issuer) -> list[KeyRow]:
    """The private keys of a JWKS document: the first signs, the others stand by or retire.

    Raises:
        ValueError: it is no JWKS, or an entry of it is no private key that signs; the message names no secret.
    """
    keys = [_read(entry, private=True) for entry in _entries(document.encode())]
    if not keys or len({kid for kid, _, _ in keys}) != len(keys):
        raise ValueError("want one key or more, each with a kid of its own")
    return [KeyRow(issuer, kid, algorithm, key) for kid, algorithm, key in keys]


def public_jwks(rows: Sequence[KeyRow]) -> bytes:
    """The JWKS document with the public halves of these signing keys."""
    entries = []
    for row in rows:
        entry = ALGORITHMS[row.algorithm].to_jwk(row.key.public_key(), as_dict=True)
        entry.pop("key_ops", None)
        entries.append({**entry, "kid": row.kid, "alg": row.algorithm, "use": "sig"})
    return orjson.dumps({"keys": entries})


def new_signing_key(kid: str) -> bytes:
    """A JWKS document with one new private key for ES256."""
    key = ALGORITHMS["ES256"].to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)
    key.pop("key_ops", None)
    return orjson.dumps({"keys": [{**key, "kid": kid, "alg": "ES256", "use": "sig"}]})


def _entries(document: bytes) -> list[object]:
    try:
        entries = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("not a JWKS document") from None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ValueError(f"a JWKS holds a list of at most {MAX_KEYS} keys")
    return entries


def _read(entry: object, *, private: bool) -> tuple[str, str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("each key of a JWKS is an object")
    kid = entry.get("kid")
    if not isinstance(kid, str) or not kid:
        raise ValueError("each key needs a kid")
    algorithm = _algorithm(kid, entry)
    if private and not isinstance(entry.get("d"), str):
        raise ValueError(f"key {kid!r} is not a private key")
    kept = entry if private else {k: v for k, v in entry.items() if k not in _PRIVATE_PARTS}
    try:
        key = jwt.PyJWK(kept, algorithm).key
    except (PyJWTError, ValueError, TypeError):
        raise ValueError(f"key {kid!r} cannot be read") from None
    if algorithm == "RS256" and key.key_size < _MIN_RSA_BITS:
        raise ValueError(f"key {kid!r}: RSA needs {_MIN_RSA_BITS} bits or more")
    return kid, algorithm, key


def _algorithm(kid: str, entry: Mapping[str, Any]) -> str:
    of_its_type = next((name for name, (kty, _) in _ASYMMETRIC.items() if kty == entry.get("kty")), "")
    algorithm = entry.get("alg", of_its_type)
    kind = _ASYMMETRIC.get(algorithm) if isinstance(algorithm, str) else None
    fits = kind is not None and kind[0] == entry.get("kty") and kind[1] in (None, entry.get("crv"))
    if not fits or entry.get("use", "sig") != "sig":
        raise ValueError(f"key {kid!r}: want RS256 with RSA, ES256 with P-256 or EdDSA with Ed25519, for signatures")
    return str(algorithm)
