"""Keys that anybody can find the private half of are refused, with the reason."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from syncbeat_server.auth.model import Issuer
from syncbeat_server.auth.tokens.keys import parse_jwks, parse_signing_keys
from syncbeat_server.auth.tokens.weak_keys import find_weakness

pytestmark = pytest.mark.unit

ISSUER = Issuer("default", "https://issuer.example")
PRIMES = [prime for prime in range(2, 1_000) if all(prime % smaller for smaller in range(2, prime))]
ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SMALL = math.prod(prime for prime in PRIMES if prime < 168)
# 2 modulo 11, where the powers of 65537 are 1 and 10, and 1 modulo the other small primes.
NO_POWER = 1 + SMALL // 11 * pow(SMALL // 11, -1, 11)


def factor(number: int, bits: int = 1024) -> int:
    """Half of a modulus. Nobody looks whether it is a prime; it has no small factor, and none in common with others."""
    return (3 << (bits - 2)) // SMALL * SMALL + number * SMALL + NO_POWER


def roca_factor(number: int) -> int:
    """One as the generator makes it for keys of 2,048 bits, but for being a prime: k * M + 65537^a mod M."""
    product = math.prod(PRIMES[:126])
    return ((1 << 1024) // product - number) * product + pow(65537, number + 5, product)


def text(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


def rsa_entry(modulus: int, exponent: int = 65537, kid: str = "k") -> dict[str, Any]:
    return {"kty": "RSA", "kid": kid, "n": text(modulus), "e": text(exponent)}


def faults(*entries: dict[str, Any]) -> list[str]:
    return parse_jwks(json.dumps({"keys": entries}).encode(), ISSUER)[1]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_roca_keys_are_refused(first: int) -> None:
    (fault,) = faults(rsa_entry(roca_factor(first) * roca_factor(first + 10)))
    assert "ROCA" in fault


@pytest.mark.parametrize(
    ("modulus", "exponent", "reason"),
    [
        (factor(1, 512) * factor(2, 512), 65537, "2048 to 8192 bits"),
        (factor(1, 1023) * factor(2, 1023), 65537, "2048 to 8192 bits"),
        (factor(1, 4200) * factor(2, 4200), 65537, "2048 to 8192 bits"),
        (factor(1) ** 2, 65537, "two primes are the same"),
        (factor(7) ** 2, 3, "two primes are the same"),
        (3 * factor(1, 2048), 65537, "small factor"),
        (167 * factor(1, 2048), 65537, "small factor"),
        (factor(1) * factor(2), 1, ""),
        (factor(1) * factor(2), 2, ""),
        (factor(1) * factor(2), 65536, ""),
        (factor(1) * factor(2), (1 << 64) + 1, "exponent"),
    ],
    ids=str,
)
def test_weak_rsa_keys_are_refused_with_the_reason(modulus: int, exponent: int, reason: str) -> None:
    (fault,) = faults(rsa_entry(modulus, exponent))
    assert reason in fault


def test_shared_prime_keys_are_refused_and_others_used() -> None:
    shared = [rsa_entry(factor(1) * factor(number), kid=f"k{number}") for number in (2, 3)]
    good = rsa_entry(factor(4) * factor(5), kid="good")
    rows, told = parse_jwks(json.dumps({"keys": [shared[0], good, shared[1]]}).encode(), ISSUER)
    assert [row.kid for row in rows] == ["good"]
    assert all("prime in common" in fault for fault in told)
    # The same key under two kids shares nothing with another one.
    assert not faults(good, {**good, "kid": "again"})


@pytest.mark.parametrize("bits", [2048, 3072])
@pytest.mark.parametrize("exponent", [3, 65537])
def test_strong_rsa_keys_are_accepted(bits: int, exponent: int) -> None:
    assert find_weakness(rsa.generate_private_key(exponent, bits)) == ""  # old keys have this exponent


def test_strong_keys_are_accepted() -> None:
    for _ in range(20):
        assert find_weakness(ed25519.Ed25519PrivateKey.generate()) == ""
        assert find_weakness(ec.generate_private_key(ec.SECP256R1())) == ""


def ec_entry(x: int, y: int, size: int = 32) -> dict[str, Any]:
    point = {
        name: base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode()
        for name, value in (("x", x), ("y", y))
    }
    return {"kty": "EC", "crv": "P-256", "kid": "k", **point}


@pytest.mark.parametrize("change", [(1, 0), (0, 1), (-1, 0), (7, 7)])
def test_invalid_curve_point_is_refused(change: tuple[int, int]) -> None:
    numbers = ec.derive_private_key(12345, ec.SECP256R1()).public_key().public_numbers()
    (fault,) = faults(ec_entry(numbers.x + change[0], numbers.y + change[1]))
    assert "not on the curve" in fault


@pytest.mark.parametrize(("x", "y"), [(0, 0), (1, 1), (2**256 - 1, 2**256 - 1), (5, 0)])
def test_malformed_curve_point_is_refused(x: int, y: int) -> None:
    (fault,) = faults(ec_entry(x, y))
    assert "not on the curve" in fault


def test_curve_coordinates_of_another_length_are_refused() -> None:
    numbers = ec.derive_private_key(12345, ec.SECP256R1()).public_key().public_numbers()
    assert faults(ec_entry(numbers.x, numbers.y, 33))
    assert not faults(ec_entry(numbers.x, numbers.y))
    assert faults(ec_entry(ORDER_OF_P256, numbers.y))


SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
]
OFF_CURVE = [
    "0200000000000000000000000000000000000000000000000000000000000000",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


@pytest.mark.parametrize("encoded", SMALL_ORDER + OFF_CURVE)
def test_ed25519_low_order_point_is_refused(encoded: str) -> None:
    x = base64.urlsafe_b64encode(bytes.fromhex(encoded)).rstrip(b"=").decode()
    (fault,) = faults({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": x})
    assert ("small order" if encoded in SMALL_ORDER else "not on the curve") in fault


def test_weak_private_key_is_refused_for_signing() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # that is what is tried
    numbers = key.private_numbers()
    parts = {"d": numbers.d, "p": numbers.p, "q": numbers.q, "dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    entry = {**rsa_entry(numbers.public_numbers.n), **{name: text(value) for name, value in parts.items()}}
    with pytest.raises(ValueError, match="2048"):
        parse_signing_keys(json.dumps({"keys": [entry]}), ISSUER)
