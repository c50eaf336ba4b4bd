"""Detects public keys whose private half can be computed, or with which anybody can sign. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
_MAX_EXPONENT = 1 << 64  # beyond it a signature would take long to check
_SMALL_PRIMES = [number for number in range(3, 168) if all(number % smaller for smaller in range(2, number))]
# The ROCA generator makes primes k * M + 65537^a mod M, where M is the product of the first primes (CVE-2017-15361,
# "The Return of Coppersmith's Attack"). So both primes, and the modulus, are powers of 65537 modulo each of those; of
# other moduli one in 2^27 is.
_ROCA_BASE = 65537
_POWERS = {prime: frozenset(pow(_ROCA_BASE, power, prime) for power in range(prime)) for prime in _SMALL_PRIMES}
# The curve of Ed25519 (RFC 8032, section 5.1): -x^2 + y^2 = 1 + d x^2 y^2 modulo p.
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P


def find_weakness(key: Any) -> str:
    """Return the weakness of a key for RS256, ES256 or EdDSA, private or public; empty if none is known.

    Points of ES256 are checked when the key is parsed.
    """
    public = key.public_key() if hasattr(key, "public_key") else key
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return _weakness_of_rsa(numbers.n, numbers.e)
    if isinstance(public, ed25519.Ed25519PublicKey):
        return _weakness_of_ed25519(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    return ""


def find_shared_primes(keys: Sequence[Any]) -> set[int]:
    """Return the indexes of RSA keys that share a prime with another one, which reveals both private keys."""
    moduli = {key.public_numbers().n for key in keys if isinstance(key, rsa.RSAPublicKey)}
    product = math.prod(moduli)
    open_ones = {modulus for modulus in moduli if math.gcd(modulus, product // modulus % modulus) != 1}
    return {
        number
        for number, key in enumerate(keys)
        if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().n in open_ones
    }


def _weakness_of_rsa(modulus: int, exponent: int) -> str:
    if not _MIN_RSA_BITS <= modulus.bit_length() <= _MAX_RSA_BITS:
        return f"RSA has {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits"
    if exponent < 3 or exponent % 2 == 0 or exponent >= _MAX_EXPONENT:
        return "its public exponent is not odd, at least 3 and below 2^64"
    if math.isqrt(modulus) ** 2 == modulus:
        return "its two primes are the same"
    if modulus % 2 == 0 or any(modulus % prime == 0 for prime in _SMALL_PRIMES):
        return "its modulus has a small factor"
    if all(modulus % prime in powers for prime, powers in _POWERS.items()):
        return "it was made by the generator that ROCA is about (CVE-2017-15361)"
    return ""


def _weakness_of_ed25519(encoded: bytes) -> str:
    y = int.from_bytes(encoded, "little") & (1 << 255) - 1
    # x^2 = (y^2 - 1) / (d y^2 + 1) must be a square. d is not one, so the divisor is never 0.
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    if y >= _P or (square and pow(square, (_P - 1) // 2, _P) != 1):
        return "its point is not on the curve"
    # With a point of small order (a divisor of 8) anybody can sign anything (RFC 8032, section 8.6).
    point = (pow(square, (_P + 3) // 8, _P), y)
    point = point if (point[0] * point[0] - square) % _P == 0 else (point[0] * pow(2, (_P - 1) // 4, _P) % _P, y)
    for _ in range(3):
        point = _double_point(*point)
    return "its point has a small order" if point == (0, 1) else ""


def _double_point(x: int, y: int) -> tuple[int, int]:
    # Point addition of RFC 8032, section 5.1.4, with both operands the same.
    product = _D * x * x * y * y % _P
    return 2 * x * y * pow(1 + product, -1, _P) % _P, (y * y + x * x) * pow(1 - product, -1, _P) % _P
