"""Verifies signatures of webhooks: Standard Webhooks, Svix, Stripe and GitHub (ADR 165).

Signatures are compared as text, so that each has one spelling, and in constant time. A request costs the same whatever
is wrong with it, and however many secrets a source has: the same number of MACs over the same octets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from syncbeat_server.defaults import WEBHOOK_SECRETS, SignatureScheme
from syncbeat_server.http.webhooks.model import Delivery, SignatureFault

_MAX_SIGNATURES = 8  # of one header: a sender that rotates sends one for each of its secrets
_LEAST_KEY_BYTES = 16
_ID = re.compile(r"[!-\-/-~]{1,128}")  # ASCII without spaces, and without the dot that separates it from the time
_TIME = re.compile(r"[0-9]{1,11}")
_HEX = re.compile(r"[0-9a-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{43}=")
# No caller has it. It stands in for missing secrets, so that each request is compared with as many.
_DECOY = secrets.token_bytes(32)

Headers = Mapping[str, Sequence[str]]
"""Values of each header, by its name in small letters."""


@dataclass(frozen=True)
class _Claim:
    """Holds what a request's headers say: the octets signed before the body, the signatures, the signed id and time."""

    prefix: bytes
    signatures: tuple[str, ...]
    id: str = ""
    time: int | None = None


_NOTHING = _Claim(b"", ())


def verify(
    scheme: SignatureScheme, keys: Sequence[bytes], headers: Headers, body: bytes, now_s: float, tolerance_s: float
) -> Delivery | SignatureFault:
    """Return the delivery if one of the keys signed it and its time is within the tolerance, else the fault."""
    claim = _CLAIMS[scheme](headers)
    spell = _SPELLINGS[scheme]
    given = _NOTHING if claim is None else claim
    matches = False
    for slot in range(WEBHOOK_SECRETS):
        key = keys[slot] if slot < len(keys) else _DECOY
        mac = hmac.new(key, given.prefix, hashlib.sha256)
        mac.update(body)
        expected = spell(mac.digest())
        for signature in given.signatures:
            matches |= hmac.compare_digest(expected, signature.encode()) and slot < len(keys)
    digest = hashlib.sha256(body).hexdigest()
    if claim is None:
        return SignatureFault.HEADERS
    if not matches:
        return SignatureFault.SIGNATURE
    if claim.time is not None and abs(now_s - claim.time) > tolerance_s:
        return SignatureFault.TIME
    return Delivery(claim.id or digest, claim.time, digest)


def refuse(headers: Headers, body: bytes) -> SignatureFault:
    """Return the fault of a request for a source that does not exist, after the work that one for a source costs."""
    verify(SignatureScheme.STANDARD_WEBHOOKS, (), headers, body, 0.0, 0.0)
    return SignatureFault.UNKNOWN_SOURCE


def parse_key(scheme: SignatureScheme, secret: str) -> bytes:
    """Return the key that a secret stands for, as the sender's console shows it.

    Raises:
        ValueError: it cannot be one; the text does not repeat it.
    """
    if scheme in (SignatureScheme.STRIPE, SignatureScheme.GITHUB):
        key = secret.encode()
    else:
        text = secret.removeprefix("v1,")  # as Supabase shows it
        if text.startswith(("whpk_", "whsk_")):
            raise ValueError("a key of an asymmetric signature (v1a), which is not taken: want one that begins whsec_")
        try:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("want whsec_ and base64") from None
    if len(key) < _LEAST_KEY_BYTES:
        raise ValueError(f"shorter than {_LEAST_KEY_BYTES} bytes")
    return key


def _one(headers: Headers, name: str) -> str | None:
    values = headers.get(name, ())
    return values[0] if len(values) == 1 else None


def _webhook_claim(headers: Headers, brand: str) -> _Claim | None:
    name, time, signed = (_one(headers, f"{brand}-{part}") for part in ("id", "timestamp", "signature"))
    if name is None or time is None or signed is None or not _ID.fullmatch(name) or not _TIME.fullmatch(time):
        return None
    found = [part.partition(",") for part in signed.split(" ")[:_MAX_SIGNATURES]]
    signatures = tuple(text for version, _, text in found if version == "v1" and _BASE64.fullmatch(text))
    return _Claim(f"{name}.{time}.".encode(), signatures, name, int(time)) if signatures else None


def _svix_claim(headers: Headers) -> _Claim | None:
    # Svix sends unbranded names too, where its customer wants them; never a mixture.
    branded = any(name.startswith("svix-") for name in headers)
    return _webhook_claim(headers, "svix" if branded else "webhook")


def _stripe_claim(headers: Headers) -> _Claim | None:
    value = _one(headers, "stripe-signature")
    if value is None:
        return None
    pairs = [part.strip().partition("=") for part in value.split(",")[: 2 * _MAX_SIGNATURES]]
    times = [text for name, _, text in pairs if name == "t"]
    signatures = tuple(text for name, _, text in pairs if name == "v1" and _HEX.fullmatch(text))[:_MAX_SIGNATURES]
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not signatures:
        return None
    return _Claim(f"{times[0]}.".encode(), signatures, "", int(times[0]))


def _github_claim(headers: Headers) -> _Claim | None:
    algorithm, _, signature = (_one(headers, "x-hub-signature-256") or "").partition("=")
    return _Claim(b"", (signature,)) if algorithm == "sha256" and _HEX.fullmatch(signature) else None


_CLAIMS: Mapping[SignatureScheme, Callable[[Headers], _Claim | None]] = {
    SignatureScheme.STANDARD_WEBHOOKS: lambda headers: _webhook_claim(headers, "webhook"),
    SignatureScheme.SVIX: _svix_claim,
    SignatureScheme.STRIPE: _stripe_claim,
    SignatureScheme.GITHUB: _github_claim,
}
_SPELLINGS: Mapping[SignatureScheme, Callable[[bytes], bytes]] = {
    SignatureScheme.STANDARD_WEBHOOKS: base64.b64encode,
    SignatureScheme.SVIX: base64.b64encode,
    SignatureScheme.STRIPE: lambda digest: digest.hex().encode(),
    SignatureScheme.GITHUB: lambda digest: digest.hex().encode(),
}
