"""JWKS documents as the world writes them: what of each is used, and for which tokens."""

from __future__ import annotations

import functools
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import MAX_KID, find_key, key_table, parse_jwks, with_kidless_row

pytestmark = pytest.mark.unit

ISSUER = Issuer("default", "https://issuer.example")


@functools.cache
def key(algorithm: str, number: int = 0) -> Any:
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def jwk(algorithm: str = "ES256", number: int = 0, **changes: Any) -> dict[str, Any]:
    """A key as it is published; a member that is changed to ... is left out."""
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key(algorithm, number).public_key(), as_dict=True)
    public.pop("key_ops", None)
    entry = {**public, "kid": "k", "alg": algorithm, "use": "sig", **changes}
    return {name: value for name, value in entry.items() if value is not ...}


def read(*entries: object) -> tuple[list[KeyRow], list[str]]:
    return parse_jwks(json.dumps({"keys": entries}).encode(), ISSUER)


def used(*entries: object) -> list[tuple[str, str]]:
    return [(row.kid, row.algorithm) for row in read(*entries)[0]]


SAME, OTHER = jwk("ES256", 0), jwk("ES256", 1)


@pytest.mark.parametrize(
    ("entries", "usable"),
    [
        pytest.param([SAME, SAME], ["ES256"], id="the same key twice"),
        pytest.param([SAME, SAME, SAME], ["ES256"], id="three times"),
        pytest.param([SAME, jwk("ES256", 0, alg=..., use=...)], ["ES256"], id="twice, once without alg and use"),
        pytest.param([SAME, jwk("RS256")], ["ES256", "RS256"], id="of different types"),
        pytest.param([SAME, jwk("RS256"), jwk("EdDSA")], ["ES256", "RS256", "EdDSA"], id="of three types"),
        pytest.param([SAME, OTHER], [], id="different keys of one type"),
        pytest.param([SAME, OTHER, SAME], [], id="the first one again"),
        pytest.param([SAME, OTHER, jwk("RS256")], ["RS256"], id="two of one type, one of another"),
        pytest.param([SAME, {**OTHER, "use": "enc"}], ["ES256"], id="the other one is for encryption"),
        pytest.param([SAME, {**OTHER, "alg": "ECDH-ES"}], ["ES256"], id="the other one is for key agreement"),
        pytest.param([SAME, {**OTHER, "y": OTHER["x"]}], ["ES256"], id="the other one is none"),
    ],
)
def test_jwks_duplicate_kid_disables_only_ambiguous_keys(entries: list[Any], usable: list[str]) -> None:
    others = [jwk("ES256", 2, kid="other"), jwk("RS256", 1, kid="another")]
    for document in (entries + others, others + entries, others[:1] + entries + others[1:]):
        found = used(*document)
        assert [algorithm for kid, algorithm in found if kid == "k"] == usable
        assert [kid for kid, _ in found if kid != "k"] == ["other", "another"]
    if not usable:
        assert "several different keys" in read(*entries)[1][0]


@pytest.mark.parametrize("member", ["use", "alg", "key_ops", "x5c", "x5t"])
def test_jwks_null_members_count_as_absent(member: str) -> None:
    for algorithm in ("ES256", "RS256", "EdDSA"):
        for value in (None, ...):
            assert used(jwk(algorithm, 0, **{member: value})) == [("k", algorithm)]


@pytest.mark.parametrize("operations", [["verify"], ["sign", "verify"], ["verify", "verify"], ["verify", "encrypt"]])
def test_jwks_key_with_verify_use_is_used(operations: list[str]) -> None:
    assert used(jwk(key_ops=operations, use=...)) == [("k", "ES256")]


@pytest.mark.parametrize(
    "changes",
    [
        {"key_ops": ["encrypt"]},
        {"key_ops": ["encrypt"], "use": "sig"},
        {"key_ops": ["sign"]},
        {"key_ops": ["sign, verify"]},
        {"key_ops": []},
        {"key_ops": "verify"},
        {"key_ops": {"verify": True}},
        {"key_ops": 1},
        {"key_ops": [["verify"]]},
        {"use": "enc"},
        {"use": ""},
        {"use": "SIG"},
        {"use": ["sig"]},
        {"use": "enc", "key_ops": ["verify"]},
    ],
    ids=str,
)
def test_jwks_key_for_another_use_is_skipped_alone(changes: dict[str, Any]) -> None:
    for algorithm in ("ES256", "RS256", "EdDSA"):
        rows, (fault,) = read(jwk(algorithm, **changes), jwk("ES256", 1, kid="other"))
        assert [row.kid for row in rows] == ["other"]
        assert "not for signatures" in fault


@pytest.mark.parametrize("alg", ["Ed25519", "EdDSA", None, ...])
def test_jwks_ed25519_is_accepted_under_both_names(alg: Any) -> None:
    assert used(jwk("EdDSA", alg=alg)) == [("k", "EdDSA")]
    assert used(jwk("ES256", alg="Ed25519")) == []
    assert used(jwk("EdDSA", alg="Ed448")) == []
    assert used(jwk("EdDSA", alg="ed25519")) == []


@pytest.mark.parametrize("kid", [..., None])
def test_jwks_key_without_kid_serves_tokens_without_kid(kid: Any) -> None:
    assert used(jwk(kid=kid)) == [("", "ES256")]
    assert used(jwk(kid=kid), jwk("RS256", kid=kid)) == [("", "ES256"), ("", "RS256")]
    assert used(jwk(kid=kid), jwk("ES256", 1, kid=kid)) == []
    assert used(jwk(kid=kid), jwk("ES256", 1)) == [("", "ES256"), ("k", "ES256")]


@pytest.mark.parametrize("kid", ["", 7, True, [], {}, "k" * (MAX_KID + 1)], ids=lambda kid: str(kid)[:9])
def test_jwks_invalid_kid_disables_its_key_alone(kid: Any) -> None:
    rows, (fault,) = read(jwk(kid=kid), jwk("ES256", 1))
    assert [row.kid for row in rows] == ["k"]
    assert "kid" in fault


def found(rows: list[KeyRow], kid: str, algorithm: str) -> KeyRow | None:
    return find_key(key_table(with_kidless_row(rows)), ISSUER.name, kid, algorithm)


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_jwks_single_key_serves_tokens_without_kid(algorithm: str) -> None:
    rows, _ = read(jwk(algorithm), jwk("RS256", 1, use="enc", kid="for encryption"), {"kty": "oct", "kid": "secret"})
    assert found(rows, "", algorithm) is not None
    assert found(rows, "k", algorithm) is not None
    assert found(rows, "unknown", algorithm) is None, "a token that names a key means that key"
    assert all(found(rows, "", other) is None for other in {"ES256", "RS256", "EdDSA", "HS256"} - {algorithm})
    several, _ = read(jwk(algorithm), jwk("ES256", 1, kid="other"))
    assert found(several, "", algorithm) is None


def secrets(*kids: str) -> list[KeyRow]:
    return [KeyRow(ISSUER, kid, "HS256", kid.ljust(32, "s")) for kid in kids]


def test_single_secret_is_tried_for_any_kid_not_of_another_key() -> None:
    published, _ = read(jwk(), jwk("RS256", kid="rsa"))
    table = key_table([*with_kidless_row(secrets("legacy")), *published])
    for kid in ("legacy", "", "Rb1Q0a9cEVDKYkrr", "another"):
        row = find_key(table, ISSUER.name, kid, "HS256")
        assert row is not None
        assert row.algorithm == "HS256"
    assert find_key(table, ISSUER.name, "rsa", "HS256") is None
    assert find_key(table, ISSUER.name, "k", "HS256") is None
    assert find_key(table, "https://other.example", "legacy", "HS256") is None
    assert find_key(table, ISSUER.name, "another", "ES256") is None
    several = key_table([*with_kidless_row(secrets("new", "old")), *published])
    assert find_key(several, ISSUER.name, "another", "HS256") is None
    assert find_key(several, ISSUER.name, "", "HS256") is None


def test_key_table_refuses_a_duplicate_kid() -> None:
    with pytest.raises(ValueError, match="two keys of kid 'k'"):
        key_table([*secrets("k"), *secrets("k")])
