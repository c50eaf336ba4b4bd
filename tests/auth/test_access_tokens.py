"""Access tokens: what is forged, foreign, early or late does not get in, and what is good does."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from syncbeat_server.auth.model import MAX_LEEWAY, OPTIONAL_CLAIMS, Issuer, KeyRow, VerifiedToken
from syncbeat_server.auth.tokens import verify as verify_module
from syncbeat_server.auth.tokens.keys import KeyTable, find_key, key_table, parse_jwks
from syncbeat_server.auth.tokens.verify import MAX_TOKEN_BYTES, mint, parse_token
from syncbeat_server.errors import TokenExpired, TokenInvalid
from tests.support.fake_clock import START

pytestmark = pytest.mark.unit

ISSUER, AUDIENCE = "https://issuer.example", "authenticated"
SECRET, OLD_SECRET = "s" * 64, "o" * 32
NOW = int(START.timestamp())
OURS = Issuer("default", ISSUER, uuid_subjects=False, required=OPTIONAL_CLAIMS - {"role", "session_id"})
SHOP = Issuer("shop", "https://shop.example", ("shop",), uuid_subjects=False)
STRICT = Issuer("default", "https://strict.example")
SESSIONS = Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)
HS = KeyRow(OURS, "hs", "HS256", SECRET)
OLD = KeyRow(OURS, "old", "HS256", OLD_SECRET)
OTHER_APP = KeyRow(SHOP, "hs", "HS256", "t" * 32)


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    kind = jwt.get_algorithm_by_name(algorithm)
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": algorithm, "use": "sig"}


def jwks(*keys: dict[str, Any]) -> list[KeyRow]:
    rows, faults = parse_jwks(json.dumps({"keys": keys}).encode(), OURS)
    assert not faults
    return rows


@functools.cache
def keys() -> KeyTable:
    published = (("rsa", rsa_key(), "RS256"), ("ec", ec_key(), "ES256"), ("ed", ed_key(), "EdDSA"))
    rows = [HS, OLD, OTHER_APP, KeyRow(STRICT, "hs", "HS256", SECRET), KeyRow(SESSIONS, "hs", "HS256", SECRET)]
    return key_table([*rows, *jwks(*(jwk(key, kid, algorithm) for kid, key, algorithm in published))])


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


def verify(token: str, table: KeyTable, now: datetime) -> VerifiedToken:
    """As the door does it."""
    unverified = parse_token(token)
    row = find_key(table, unverified.issuer, unverified.header.kid, unverified.header.algorithm)
    if row is None:
        raise TokenInvalid("no such key")
    return verify_module.verify_token(unverified, row, now)


def check(token: str) -> VerifiedToken:
    return verify(token, keys(), START)


def refused(token: str) -> str:
    with pytest.raises(TokenInvalid) as raised:
        check(token)
    return raised.value.message


@pytest.mark.parametrize(
    ("kid", "algorithm"), [("hs", "HS256"), ("old", "HS256"), ("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")]
)
def test_access_token_yields_user_app_and_expiry(kid: str, algorithm: str) -> None:
    key = {"hs": SECRET, "old": OLD_SECRET, "rsa": rsa_key(), "ec": ec_key(), "ed": ed_key()}[kid]
    verified = check(signed(kid, key, algorithm, session_id="s"))
    assert verified == VerifiedToken(OURS, "ann", "s", START, START + timedelta(seconds=600))


def test_minted_token_is_accepted_for_its_lifetime() -> None:
    token = mint(OTHER_APP, "bob", START, timedelta(minutes=5), session_id="s")
    assert check(token) == VerifiedToken(SHOP, "bob", "s", START, START + timedelta(minutes=5))
    assert verify(token, keys(), START + timedelta(minutes=5) + MAX_LEEWAY - timedelta(seconds=1)).subject == "bob"
    with pytest.raises(TokenExpired):
        verify(token, keys(), START + timedelta(minutes=5) + MAX_LEEWAY)


def test_key_is_used_for_its_own_algorithm_only() -> None:
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
def test_unsigned_token_is_refused(algorithm: str | None) -> None:
    good = by_hand({"alg": algorithm, "kid": "hs"}, claims())
    refused(good)
    refused(good.rsplit(".", 1)[0] + ".")


def test_signature_of_another_key_is_refused() -> None:
    refused(signed("hs", OLD_SECRET))
    refused(signed("rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"))
    refused(signed("ec", ec.generate_private_key(ec.SECP256R1()), "ES256"))
    head, _, signature = signed().split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(sub="bob")).encode()).rstrip(b"=").decode()
    refused(f"{head}.{other}.{signature}")


def test_key_is_chosen_by_issuer_and_kid() -> None:
    refused(signed("unknown"))
    refused(jwt.encode(claims(), SECRET, algorithm="HS256"))  # no kid, and several keys
    refused(signed(iss="https://elsewhere.example"))
    refused(signed(iss=SHOP.name, aud=SHOP.audiences[0]))  # another app's kid of the same name
    only = key_table([KeyRow(OURS, "", "HS256", SECRET)])
    assert verify(jwt.encode(claims(), SECRET, algorithm="HS256"), only, START).subject == "ann"


def test_key_embedded_in_a_token_is_not_used() -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    own = jwk(stranger, "mine", "RS256")
    for header in ({"kid": "mine", "jwk": own}, {"kid": "rsa", "jwk": own, "jku": "https://evil.example/jwks"}):
        refused(jwt.encode(claims(), stranger, algorithm="RS256", headers=header))


@pytest.mark.parametrize("missing", ["iss", "aud", "sub", "iat", "exp"])
def test_claim_that_is_required_must_be_present(missing: str) -> None:
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
        {"role": ["anon"]},
        {"role": {"name": "anon"}},
        {"role": "admin"},
    ],
    ids=str,
)
def test_claim_with_a_wrong_value_is_refused(changes: dict[str, Any]) -> None:
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
        {"amr": [{"method": "otp"}]},
    ],
    ids=str,
)
def test_clock_leeway_and_extra_claims_are_accepted(changes: dict[str, Any]) -> None:
    assert check(signed(**changes)).issuer.app_id == "default"


GOOD: dict[str, Any] = {"iss": STRICT.name, "sub": "1f0c7a52-6f6c-4d3e-9d6b-0f3f3f6f9a10", "session_id": "s"}


def test_claims_are_all_required_by_default() -> None:
    assert check(signed(**GOOD)).session_id == "s"
    assert check(signed(**{**GOOD, "sub": GOOD["sub"].upper()})).subject == GOOD["sub"].upper()
    for name in OPTIONAL_CLAIMS:
        refused(signed(**{**GOOD, name: None}))
    for changes in ({"role": "admin"}, {"role": ["authenticated"]}, {"sub": "ann"}, {"sub": GOOD["sub"] + "0"}):
        refused(signed(**{**GOOD, **changes}))
    for session_id in ("", 7, "x" * 129, "a\nb"):
        refused(signed(**{**GOOD, "session_id": session_id}))


def test_claims_can_be_made_optional_per_issuer() -> None:
    lenient = Issuer("default", ISSUER, (), frozenset(), frozenset(), uuid_subjects=False)
    table = key_table([KeyRow(lenient, "hs", "HS256", SECRET)])
    token = verify(signed(aud=None, iat=None, role=None), table, START)
    assert (token.issued_at, token.session_id) == (None, "")
    for token_without in (signed(exp=None), signed(sub=None)):
        with pytest.raises(TokenInvalid):
            verify(token_without, table, START)
    with pytest.raises(TokenInvalid):
        verify(signed(role="anon"), table, START)


def test_own_session_token_carries_generation_and_counter() -> None:
    own: dict[str, Any] = {"iss": SESSIONS.name, "session_id": "s", "gen": 3, "ctr": 7}
    token = check(signed(**own))
    assert (token.generation, token.counter) == (3, 7)
    for changes in ({"gen": -1}, {"ctr": "7"}, {"gen": True}, {"ctr": 7.0}, {"gen": 1 << 62}):
        refused(by_hand({"alg": "HS256", "kid": "hs"}, claims(**{**own, **changes})))
    refused(by_hand({"alg": "HS256", "kid": "hs"}, claims(**{**own, "gen": None})))


def test_expired_is_reported_only_for_a_genuine_token() -> None:
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
def test_garbage_token_is_refused_without_an_exception(token: str) -> None:
    message = refused(token)
    assert SECRET not in message


@pytest.mark.parametrize("user_id", ["", "a\nb", "x" * 129, "\ud800"], ids=ascii)
def test_mint_refuses_a_token_that_would_be_refused(user_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 128 bytes"):
        mint(HS, user_id, START, timedelta(minutes=5))


def test_header_cache_skips_long_headers() -> None:
    before = verify_module._cached_header.cache_info().currsize
    for number in range(10):
        with pytest.raises(TokenInvalid):
            check(by_hand({"alg": "HS256", "kid": f"{number}" + "k" * 2_000}, claims()))
    assert verify_module._cached_header.cache_info().currsize == before
