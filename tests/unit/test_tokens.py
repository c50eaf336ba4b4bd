"""Access tokens: what is forged, foreign, early or late does not get in, and what is good does."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from syncbeat_server.auth.tokens import (
    LEEWAY,
    MAX_TOKEN_BYTES,
    KeyRow,
    VerifiedToken,
    key_table,
    keys_of_jwks,
    mint,
    verify,
)
from syncbeat_server.errors import TokenExpired, TokenInvalid
from tests.fakes import START

ISSUER, AUDIENCE = "https://issuer.example", "authenticated"
SECRET, OLD_SECRET = "s" * 64, "o" * 32
NOW = int(START.timestamp())
HS = KeyRow("default", ISSUER, AUDIENCE, "hs", "HS256", SECRET)
OLD = KeyRow("default", ISSUER, AUDIENCE, "old", "HS256", OLD_SECRET)
OTHER_APP = KeyRow("shop", "https://shop.example", "shop", "hs", "HS256", "t" * 32)


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if algorithm == "RS256" else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": algorithm, "use": "sig"}


def jwks(*keys: dict[str, Any]) -> list[KeyRow]:
    document = json.dumps({"keys": keys}).encode()
    return keys_of_jwks(document, app_id="default", issuer=ISSUER, audience=AUDIENCE)


@functools.cache
def keys() -> Any:
    return key_table([HS, OLD, OTHER_APP, *jwks(jwk(rsa_key(), "rsa", "RS256"), jwk(ec_key(), "ec", "ES256"))])


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims; one that is changed to None is left out."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": NOW, "exp": NOW + 600, "role": "authenticated"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(kid: str = "hs", key: Any = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": kid})


def by_hand(header: dict[str, Any], payload: object, secret: bytes = SECRET.encode()) -> str:
    """A token that no library would make, signed with HS256."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    start = f"{part(json.dumps(header).encode())}.{part(body)}"
    return f"{start}.{part(hmac.new(secret, start.encode(), hashlib.sha256).digest())}"


def check(token: str) -> VerifiedToken:
    return verify(token, keys(), START)


def refused(token: str) -> str:
    with pytest.raises(TokenInvalid) as raised:
        check(token)
    return raised.value.message


@pytest.mark.parametrize(("kid", "algorithm"), [("hs", "HS256"), ("old", "HS256"), ("rsa", "RS256"), ("ec", "ES256")])
def test_a_good_token_says_who_of_which_app_until_when(kid: str, algorithm: str) -> None:
    key = {"hs": SECRET, "old": OLD_SECRET, "rsa": rsa_key(), "ec": ec_key()}[kid]
    verified = check(signed(kid, key, algorithm))
    assert verified == VerifiedToken("default", "ann", START + timedelta(seconds=600))


def test_what_is_minted_is_accepted_for_its_life() -> None:
    token = mint(OTHER_APP, "bob", START, timedelta(minutes=5))
    assert check(token) == VerifiedToken("shop", "bob", START + timedelta(minutes=5))
    assert verify(token, keys(), START + timedelta(minutes=5) + LEEWAY - timedelta(seconds=1)).user_id == "bob"
    with pytest.raises(TokenExpired):
        verify(token, keys(), START + timedelta(minutes=5) + LEEWAY)


def test_a_key_is_used_for_its_own_algorithm_only() -> None:
    public = (
        rsa_key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    # The classic: the public key taken for a secret.
    refused(by_hand({"alg": "HS256", "kid": "rsa"}, claims(), secret=public))
    refused(by_hand({"alg": "RS256", "kid": "hs"}, claims()))
    refused(signed("hs", rsa_key(), "RS256"))
    refused(signed("hs", SECRET, "HS512"))
    refused(signed("ec", rsa_key(), "RS256"))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS257", None])
def test_a_token_that_is_not_signed_is_refused(algorithm: str | None) -> None:
    good = by_hand({"alg": algorithm, "kid": "hs"}, claims())
    refused(good)
    refused(good.rsplit(".", 1)[0] + ".")


def test_a_signature_of_another_key_is_refused() -> None:
    refused(signed("hs", OLD_SECRET))
    refused(signed("rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"))
    refused(signed("ec", ec.generate_private_key(ec.SECP256R1()), "ES256"))
    head, _, signature = signed().split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(sub="bob")).encode()).rstrip(b"=").decode()
    refused(f"{head}.{other}.{signature}")


def test_the_key_is_chosen_by_issuer_and_kid_together() -> None:
    refused(signed("unknown"))
    refused(jwt.encode(claims(), SECRET, algorithm="HS256"))  # no kid, and several keys
    refused(signed(iss="https://elsewhere.example"))
    refused(signed(iss=OTHER_APP.issuer, aud=OTHER_APP.audience))  # another app's kid of the same name
    only = key_table([KeyRow("default", ISSUER, AUDIENCE, "", "HS256", SECRET)])
    assert verify(jwt.encode(claims(), SECRET, algorithm="HS256"), only, START).user_id == "ann"


def test_keys_that_the_token_brings_along_are_not_used() -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = jwk(stranger, "mine", "RS256")
    for header in ({"kid": "mine", "jwk": own}, {"kid": "rsa", "jwk": own, "jku": "https://evil.example/jwks"}):
        refused(jwt.encode(claims(), stranger, algorithm="RS256", headers=header))


@pytest.mark.parametrize("missing", ["iss", "aud", "sub", "iat", "exp"])
def test_every_claim_that_is_checked_must_be_there(missing: str) -> None:
    refused(by_hand({"alg": "HS256", "kid": "hs"}, claims(**{missing: None})))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": ["another"]},
        {"iat": NOW + 31},
        {"nbf": NOW + 31},
        {"nbf": "soon"},
        {"exp": "never"},
        {"exp": True},
        {"exp": 1e300},
        {"iat": -1e300},
        {"exp": [NOW]},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a" * 129},
        {"sub": "\N{SNOWMAN}" * 43},
        {"sub": "a\nb"},
        {"sub": "a\0b"},
        {"sub": "\ud800"},
        {"role": "anon"},
        {"role": "service_role"},
    ],
    ids=str,
)
def test_a_claim_that_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    refused(by_hand({"alg": "HS256", "kid": "hs"}, claims(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["another", AUDIENCE]},
        {"iat": NOW + 30},
        {"nbf": NOW + 30},
        {"nbf": NOW - 1.5},
        {"exp": NOW - 29},
        {"sub": "a" * 128},
        {"role": None},
        {"role": ["anon"]},
        {"role": {"name": "anon"}},
        {"role": "admin"},
        {"amr": [{"method": "otp"}]},
    ],
    ids=str,
)
def test_clocks_may_differ_by_the_leeway_and_more_claims_do_no_harm(changes: dict[str, Any]) -> None:
    assert check(signed(**changes)).app_id == "default"


def test_expired_is_told_only_of_a_token_that_was_good() -> None:
    with pytest.raises(TokenExpired):
        check(signed(exp=NOW - 30))
    refused(signed("hs", OLD_SECRET, exp=NOW - 30))
    refused(signed(exp=NOW - 30, aud="another"))
    refused(signed(exp=NOW - 30, role="anon"))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "\N{SNOWMAN}.\N{SNOWMAN}.x",
        by_hand({"alg": "HS256", "kid": ["hs"]}, claims()),
        by_hand({"alg": "HS256", "kid": "hs"}, claims(iss=["x"])),
        by_hand({"alg": "HS256", "kid": "hs"}, [1, 2]),
        by_hand({"alg": "HS256", "kid": "hs"}, b"\xff\xfe"),
        by_hand({"alg": "HS256", "kid": "hs"}, b"[" * 4000),
        by_hand({"alg": "HS256", "kid": "hs"}, b'{"iss": ' + b"9" * 5000 + b"}"),
        "a" * (MAX_TOKEN_BYTES + 1),
    ],
    ids=lambda token: token[:20] or "empty",
)
def test_garbage_is_refused_without_a_stumble(token: str) -> None:
    message = refused(token)
    assert SECRET not in message


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
def test_what_is_no_jwks_is_refused(document: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        keys_of_jwks(document, app_id="a", issuer="i", audience="u")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kid": ""}, "needs a kid"),
        ({"kid": 3}, "needs a kid"),
        ({"alg": "HS256"}, "want alg"),
        ({"alg": "PS256"}, "want alg"),
        ({"alg": ["x"]}, "want alg"),
        ({"alg": None, "kty": None}, "want alg"),
        ({"kty": ["RSA"]}, "want alg"),
        ({"n": 5}, "cannot be read"),
        ({"alg": "ES256"}, "want alg"),
        ({"use": "enc"}, "want alg"),
        ({"n": "!!"}, "cannot be read"),
    ],
    ids=str,
)
def test_a_key_that_must_not_sign_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        jwks({**jwk(rsa_key(), "rsa", "RS256"), **changes})


def test_a_short_rsa_key_and_a_symmetric_one_are_refused() -> None:
    with pytest.raises(ValueError, match="2048"):
        jwks(jwk(rsa_key(1024), "short", "RS256"))
    with pytest.raises(ValueError, match="want alg"):
        jwks({"kty": "oct", "kid": "shared", "alg": "HS256", "k": "c2VjcmV0"})


def test_a_private_key_in_a_jwks_is_read_as_a_public_one() -> None:
    private = jwt.algorithms.ECAlgorithm.to_jwk(ec_key(), as_dict=True)
    (row,) = jwks({**private, "kid": "ec", "alg": "ES256"})
    assert isinstance(row.key, ec.EllipticCurvePublicKey)


@pytest.mark.parametrize("user_id", ["", "a\nb", "x" * 129, "\ud800"], ids=ascii)
def test_nobody_gets_a_token_that_would_be_refused(user_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 128 bytes"):
        mint(HS, user_id, START, timedelta(minutes=5))
