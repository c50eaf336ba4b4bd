"""Reads and checks the keys that sign access tokens. Pure."""

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
from syncbeat_server.auth.tokens.weak_keys import find_shared_primes, find_weakness

MAX_KEYS = 64
MAX_JWKS_BYTES = 256 * 1024
MAX_KID = 256
SYMMETRIC = "HS256"
# Key types and curves as RFC 7518 and RFC 8037 name them. A key without an "alg" is used for the one of its type.
_ASYMMETRIC = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
PUBLISHED = frozenset(_ASYMMETRIC)
"""Algorithms whose keys are published."""
_PRIVATE_PARTS = ("d", "p", "q", "dp", "dq", "qi", "oth")
ALGORITHMS = {name: jwt.get_algorithm_by_name(name) for name in (SYMMETRIC, *_ASYMMETRIC)}
"""PyJWT's implementations, which do the cryptography and prepare the keys."""

KeyTable = Mapping[tuple[str, str, str], KeyRow]
"""Keys by (issuer, kid, algorithm). A token's header only selects the row, whose algorithm verifies it (RFC 8725, 3.1).
A row without a kid serves tokens without one.
"""


def canonical_algorithm(algorithm: str) -> str:
    """Return our name of an algorithm: RFC 9864 renames EdDSA with this curve to "Ed25519"."""
    return "EdDSA" if algorithm == "Ed25519" else algorithm


def key_table(rows: Iterable[KeyRow]) -> KeyTable:
    """Index keys by (issuer, kid, algorithm) and prepare them for use.

    Raises:
        ValueError: a key does not fit its algorithm, is too short (RFC 7518, sections 3.2 and 3.3), or is a duplicate.
    """
    table: dict[tuple[str, str, str], KeyRow] = {}
    for row in rows:
        place = (row.issuer.name, row.kid, row.algorithm)
        if place in table:
            raise ValueError(f"two keys of kid {row.kid!r}")
        table[place] = replace(row, key=_prepare(row))
    return table


def find_key(table: KeyTable, issuer: str, kid: str, algorithm: str) -> KeyRow | None:
    """Return the key that a token's header selects, or None.

    An issuer's only secret verifies HS256 tokens of any kid, unless another key has that kid: issuers such as GoTrue
    put a kid on tokens that they sign with a secret from before there were kids.
    """
    row = table.get((issuer, kid, algorithm))
    if row is not None or algorithm != SYMMETRIC or any((issuer, kid, other) in table for other in PUBLISHED):
        return row
    return table.get((issuer, "", SYMMETRIC))


def with_kidless_row(rows: list[KeyRow]) -> list[KeyRow]:
    """Add a row without a kid if the issuer has a single key, so that it also verifies tokens without one."""
    return [*rows, replace(rows[0], kid="")] if len(rows) == 1 and rows[0].kid else rows


def _prepare(row: KeyRow) -> Any:
    algorithm = ALGORITHMS[row.algorithm]
    try:
        key = algorithm.prepare_key(row.key)
    except (PyJWTError, ValueError, TypeError):
        raise ValueError(f"key {row.kid!r} is none for {row.algorithm}") from None
    if algorithm.check_key_length(key):
        raise ValueError(f"key {row.kid!r} is too short for {row.algorithm}")
    return key


def parse_jwks(document: bytes, issuer: Issuer) -> tuple[list[KeyRow], list[str]]:
    """Read the public keys of a JWKS document (RFC 7517) that verify signatures.

    Returns:
        The usable keys, and the fault of each key that is left out.

    Raises:
        ValueError: it is not a JWKS, holds more than 64 entries or is longer than 256 KiB.
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
    broken = find_shared_primes([row.key for row in rows])
    faults += [f"key {rows[number].kid!r} has a prime in common with another key" for number in sorted(broken)]
    usable, ambiguous = _unambiguous([row for number, row in enumerate(rows) if number not in broken])
    return usable, faults + ambiguous


def _unambiguous(rows: Sequence[KeyRow]) -> tuple[list[KeyRow], list[str]]:
    # Keys of one kid are distinguished by their algorithms; with the same algorithm too they are ambiguous.
    unambiguous: dict[tuple[str, str], KeyRow] = {}
    refused: dict[tuple[str, str], str] = {}
    for row in rows:
        place = (row.kid, row.algorithm)
        if unambiguous.setdefault(place, row).key != row.key:
            refused[place] = f"key {row.kid!r}: several different keys have this kid"
    return [row for place, row in unambiguous.items() if place not in refused], list(refused.values())


def parse_signing_keys(document: str, issuer: Issuer) -> list[KeyRow]:
    """Read the private keys of a JWKS document: the first signs, the others are standing by or retiring.

    Raises:
        ValueError: it is not a JWKS, or an entry is not a private signing key; the message contains no secret.
    """
    keys = [_read(entry, private=True) for entry in _entries(document.encode())]
    if not keys or len({kid for kid, _, _ in keys}) != len(keys):
        raise ValueError("want one key or more, each with a kid of its own")
    return [KeyRow(issuer, kid, algorithm, key) for kid, algorithm, key in keys]


def public_jwks(rows: Sequence[KeyRow]) -> bytes:
    """Return a JWKS document with the public halves of signing keys."""
    entries = []
    for row in rows:
        entry = ALGORITHMS[row.algorithm].to_jwk(row.key.public_key(), as_dict=True)
        entry.pop("key_ops", None)
        entries.append({**entry, "kid": row.kid, "alg": row.algorithm, "use": "sig"})
    return orjson.dumps({"keys": entries})


def new_signing_key(kid: str) -> bytes:
    """Return a JWKS document with one new private key for ES256."""
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
    public = entry if private else {k: v for k, v in entry.items() if k not in _PRIVATE_PARTS}
    try:
        key = jwt.PyJWK(public, algorithm).key
    except (PyJWTError, ValueError, TypeError):
        off_curve = ", or its point is not on the curve" if algorithm == "ES256" else ""
        raise ValueError(f"key {kid!r} cannot be read{off_curve}") from None
    fault = find_weakness(key)
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
    algorithm = canonical_algorithm(algorithm) if isinstance(algorithm, str) else ""
    kind = _ASYMMETRIC.get(algorithm)
    if kind is None or kind[0] != entry.get("kty") or kind[1] not in (None, entry.get("crv")):
        raise ValueError(f"key {kid!r}: want RS256 with RSA, ES256 with P-256 or EdDSA with Ed25519")
    return algorithm
