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
from syncbeat_server.auth.tokens.weak_keys import sharing_a_prime, weakness

MAX_KEYS = 64
MAX_JWKS_BYTES = 256 * 1024
MAX_KID = 256
SYMMETRIC = "HS256"
# What RFC 7518 and RFC 8037 call the key types and curves. A key without an "alg" is used for the one of its type.
_ASYMMETRIC = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
PUBLISHED = frozenset(_ASYMMETRIC)
"""The algorithms whose keys are published."""
_PRIVATE_PARTS = ("d", "p", "q", "dp", "dq", "qi", "oth")
ALGORITHMS = {name: jwt.get_algorithm_by_name(name) for name in (SYMMETRIC, *_ASYMMETRIC)}
"""PyJWT's own, which do the cryptography and prepare the keys."""

KeyTable = Mapping[tuple[str, str, str], KeyRow]
"""By (issuer, kid, algorithm). What a token's header says only selects a row, by the algorithm of which it is checked
(RFC 8725, 3.1). A row without a kid serves tokens without one."""


def usual_name(algorithm: str) -> str:
    """Return the name used here for an algorithm. RFC 9864 names EdDSA with this curve after the curve."""
    return "EdDSA" if algorithm == "Ed25519" else algorithm


def key_table(rows: Iterable[KeyRow]) -> KeyTable:
    """The rows by (issuer, kid, algorithm), their keys prepared for use.

    Raises:
        ValueError: a key is none for its algorithm, or too short for it (RFC 7518, sections 3.2 and 3.3), or two have
            the same place.
    """
    table: dict[tuple[str, str, str], KeyRow] = {}
    for row in rows:
        place = (row.issuer.name, row.kid, row.algorithm)
        if place in table:
            raise ValueError(f"two keys of kid {row.kid!r}")
        table[place] = replace(row, key=_prepared(row))
    return table


def row_in(table: KeyTable, issuer: str, kid: str, algorithm: str) -> KeyRow | None:
    """The key that a token asks for.

    An issuer's only secret checks HS256 tokens whatever kid they have, unless that is another key's: some put one on
    tokens that they sign by a secret of before there were kids, as GoTrue does.
    """
    row = table.get((issuer, kid, algorithm))
    if row is not None or algorithm != SYMMETRIC or any((issuer, kid, other) in table for other in PUBLISHED):
        return row
    return table.get((issuer, "", SYMMETRIC))


def also_without_kid(rows: list[KeyRow]) -> list[KeyRow]:
    """The keys of one kind of an issuer: a single one also serves tokens without a kid."""
    return [*rows, replace(rows[0], kid="")] if len(rows) == 1 and rows[0].kid else rows


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
    """The keys of a JWKS document (RFC 7517) that check signatures, and what is wrong with each that was left out.

    Raises:
        ValueError: it is no JWKS, holds more than 64 entries or is longer than 256 KiB.
    """
    if len(document) > MAX_JWKS_BYTES:
        raise ValueError(f"a JWKS has at most {MAX_JWKS_BYTES // 1024} KiB")
    rows, faults = [], []
    for entry in _entries(document):
        try:
            kid, algorithm, key = _read(entry, private=False)
            rows.append(KeyRow(issuer, kid, algorithm, key))
        except ValueError as error:
            faults.append(str(error))
    open_ones = sharing_a_prime([row.key for row in rows])
    faults += [f"key {rows[number].kid!r} has a prime in common with another key" for number in sorted(open_ones)]
    kept, ambiguous = _unambiguous([row for number, row in enumerate(rows) if number not in open_ones])
    return kept, faults + ambiguous


def _unambiguous(rows: Sequence[KeyRow]) -> tuple[list[KeyRow], list[str]]:
    # Two of one kid are told apart by their algorithms; of one algorithm too, nobody can say which is meant.
    kept: dict[tuple[str, str], KeyRow] = {}
    refused: dict[tuple[str, str], str] = {}
    for row in rows:
        place = (row.kid, row.algorithm)
        if kept.setdefault(place, row).key != row.key:
            refused[place] = f"key {row.kid!r}: several different keys have this kid"
    return [row for place, row in kept.items() if place not in refused], list(refused.values())


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
    entry = {name: value for name, value in entry.items() if value is not None}
    kid = entry.get("kid", "")
    if not isinstance(kid, str) or len(kid) > MAX_KID or (not kid and (private or "kid" in entry)):
        raise ValueError(f"each key needs a kid of 1 to {MAX_KID} characters" + ("" if private else ", or none"))
    _check_use(kid, entry, "sign" if private else "verify")
    algorithm = _algorithm(kid, entry)
    if private and not isinstance(entry.get("d"), str):
        raise ValueError(f"key {kid!r} is not a private key")
    kept = entry if private else {k: v for k, v in entry.items() if k not in _PRIVATE_PARTS}
    try:
        key = jwt.PyJWK(kept, algorithm).key
    except (PyJWTError, ValueError, TypeError):
        off_curve = ", or its point is not on the curve" if algorithm == "ES256" else ""
        raise ValueError(f"key {kid!r} cannot be read{off_curve}") from None
    fault = weakness(key)
    if fault:
        raise ValueError(f"key {kid!r} cannot be trusted: {fault}")
    return kid, algorithm, key


def _check_use(kid: str, entry: Mapping[str, Any], operation: str) -> None:
    # RFC 7517, sections 4.2 and 4.3.
    operations = entry.get("key_ops", [operation])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or operation not in operations:
        raise ValueError(f"key {kid!r} is not for signatures (use, key_ops)")


def _algorithm(kid: str, entry: Mapping[str, Any]) -> str:
    of_its_type = next((name for name, (kty, _) in _ASYMMETRIC.items() if kty == entry.get("kty")), "")
    algorithm = entry.get("alg", of_its_type)
    algorithm = usual_name(algorithm) if isinstance(algorithm, str) else ""
    kind = _ASYMMETRIC.get(algorithm)
    if kind is None or kind[0] != entry.get("kty") or kind[1] not in (None, entry.get("crv")):
        raise ValueError(f"key {kid!r}: want RS256 with RSA, ES256 with P-256 or EdDSA with Ed25519")
    return algorithm
