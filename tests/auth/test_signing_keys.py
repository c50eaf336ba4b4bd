"""Keys that sign access tokens: which are let in, for which algorithm, and what of them is published."""

from __future__ import annotations

import functools
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import key_table, new_signing_key, parse_jwks, parse_signing_keys, public_jwks

pytestmark = pytest.mark.unit

ISSUER = Issuer("default", "https://issuer.example")


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    kind = jwt.get_algorithm_by_name(algorithm)
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": algorithm, "use": "sig"}


def jwks(*entries: dict[str, Any]) -> tuple[list[KeyRow], list[str]]:
    return parse_jwks(json.dumps({"keys": entries}).encode(), ISSUER)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "not a JWKS"),
        (b"[]", "not a JWKS"),
        (b'{"keys": {}}', "list"),
        (b'{"keys": [1]}', "is an object"),
        (b'{"keys": [null]}', "is an object"),
        (json.dumps({"keys": [{}] * 65}).encode(), "at most 64"),
    ],
)
def test_jwks_malformed_document_is_refused(document: bytes, said: str) -> None:
    try:
        faults = parse_jwks(document, ISSUER)[1]
    except ValueError as error:
        faults = [str(error)]
    assert said in faults[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kid": ""}, "needs a kid"),
        ({"kid": 3}, "needs a kid"),
        ({"alg": "HS256"}, "want RS256"),
        ({"alg": "PS256"}, "want RS256"),
        ({"alg": ["x"]}, "want RS256"),
        ({"alg": None, "kty": None}, "want RS256"),
        ({"use": ["sig"]}, "not for signatures"),
        ({"key_ops": ["sign"]}, "not for signatures"),
        ({"key_ops": []}, "not for signatures"),
        ({"key_ops": "verify"}, "not for signatures"),
        ({"key_ops": ["encrypt", "wrapKey"], "use": "sig"}, "not for signatures"),
        ({"kty": ["RSA"]}, "want RS256"),
        ({"n": 5}, "cannot be read"),
        ({"alg": "ES256"}, "want RS256"),
        ({"use": "enc"}, "not for signatures"),
        ({"n": "!!"}, "cannot be read"),
    ],
    ids=str,
)
def test_jwk_not_for_signing_is_refused(changes: dict[str, Any], said: str) -> None:
    rows, (fault,) = jwks({**jwk(rsa_key(), "rsa", "RS256"), **changes}, jwk(ec_key(), "ec", "ES256"))
    assert said in fault
    assert [row.kid for row in rows] == ["ec"]  # the others are used all the same


def test_jwk_short_rsa_and_symmetric_keys_are_refused() -> None:
    rows, faults = jwks(
        jwk(rsa_key(1024), "short", "RS256"), {"kty": "oct", "kid": "shared", "alg": "HS256", "k": "c2VjcmV0"}
    )
    assert not rows
    assert "2048" in faults[0]
    assert "want RS256" in faults[1]


def test_jwk_private_key_is_read_as_public() -> None:
    private = jwt.algorithms.ECAlgorithm.to_jwk(ec_key(), as_dict=True)
    ((row,), _) = jwks({**private, "kid": "ec", "alg": "ES256"})
    assert isinstance(row.key, ec.EllipticCurvePublicKey)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        (rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"),
    ],
    ids=["ES256", "EdDSA", "RS256"],
)
def test_jwk_without_alg_is_used_for_the_algorithm_of_its_type(key: Any, algorithm: str) -> None:
    entry = jwk(key, "k", algorithm)
    del entry["alg"], entry["use"]
    ((row,), faults) = jwks(entry)
    assert (row.algorithm, faults) == (algorithm, [])


def test_jwk_of_an_unsupported_curve_is_refused() -> None:
    for key, algorithm in (
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (ed448.Ed448PrivateKey.generate(), "EdDSA"),
    ):
        entry = jwk(key, "k", algorithm)
        for alg in (algorithm, "ES256", None):
            rows, faults = jwks({**entry, "alg": alg} if alg else {n: v for n, v in entry.items() if n != "alg"})
            assert not rows
            assert faults


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (KeyRow(ISSUER, "k", "HS256", "short"), "too short"),
        (KeyRow(ISSUER, "k", "HS256", rsa_key().public_key()), "is none for"),
        (KeyRow(ISSUER, "k", "ES256", "no key"), "is none for"),
    ],
    ids=["short", "public key as secret", "text as key"],
)
def test_key_of_a_wrong_type_stops_the_start(row: KeyRow, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        key_table([row])


def test_signing_keys_are_published_without_their_private_half() -> None:
    documents = [json.loads(new_signing_key(kid)) for kid in ("new", "old")]
    private = json.dumps({"keys": [entry for document in documents for entry in document["keys"]]})
    rows = parse_signing_keys(private, ISSUER)
    assert [(row.kid, row.algorithm) for row in rows] == [("new", "ES256"), ("old", "ES256")]
    published = public_jwks(rows)
    assert b'"d"' not in published
    read, faults = parse_jwks(published, ISSUER)
    assert ([row.kid for row in read], faults) == (["new", "old"], [])
    assert read[0].key.public_numbers() == rows[0].key.public_key().public_numbers()
    assert json.loads(public_jwks([])) == {"keys": []}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        '{"keys": []}',
        json.dumps({"keys": [jwk(ec_key(), "public", "ES256")]}),
        json.dumps({"keys": 2 * json.loads(new_signing_key("twice"))["keys"]}),
    ],
    ids=["empty", "no keys", "none", "public", "twice"],
)
def test_signing_key_that_cannot_sign_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match=r"JWKS|key"):
        parse_signing_keys(document, ISSUER)
