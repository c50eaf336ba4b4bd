"""More forged tokens, by families: what each algorithm can be tricked with, other kinds of tokens, odd JSON.

The families are those of Project Wycheproof's JOSE tests and of the attacks that RFC 8725 lists; the cases are our own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from tests.support.forged_tokens import Forger

_ALGORITHMS = (
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "PS256",
    "ES256",
    "ES384",
    "ES256K",
    "EdDSA",
    "Ed448",
    "none",
)
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # the order of P-256
_L = 2**252 + 27742317777372353535851937790883648493  # of Ed25519
# What stands before the digest (RFC 8017, section 9.2), and what must not.
_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")
_PREFIXES = {
    "without a NULL": bytes.fromhex("302f300b0609608648016503040201040420"),
    "of SHA-1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "of SHA-512": bytes.fromhex("3051300d060960864801650304020305000440"),
    "of MD5": bytes.fromhex("3020300c06082a864886f70d020505000410"),
    "in the long form": bytes.fromhex("308131300d060960864801650304020105000420"),
    "none at all": b"",
}


def encoded(octets: bytes) -> str:
    """Encode in base64url."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def families(forger: Forger, keys: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    """All of them, by what is odd. `keys`: what signs, and its algorithm, by kid."""
    good = {kid: forger.good(kid) for kid in keys}
    return {
        **_changed_signatures(good),
        **_swapped_algorithms(forger, keys, good),
        **_ecdsa(good["ec"]),
        **_eddsa(good["ed"]),
        **_rsa(good["rsa"], keys["rsa"][1]),
        **_kinds(forger),
        **_times(forger),
        **_json(forger),
        **_serializations(good["hs"]),
    }


def _changed_signatures(good: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kid, token in good.items():
        start, _, text = token.rpartition(".")
        signature = base64.urlsafe_b64decode(text + "==")
        changed = {
            "its first bit": bytes([signature[0] ^ 0x80]) + signature[1:],
            "its last bit": signature[:-1] + bytes([signature[-1] ^ 1]),
            "its middle": signature[:20] + bytes([signature[20] ^ 0xFF]) + signature[21:],
            "one octet less": signature[:-1],
            "one octet more": signature + b"\0",
            "one octet before": b"\0" + signature,
            "turned around": signature[::-1],
            "all ones": b"\xff" * len(signature),
            "twice": signature * 2,
            "its halves swapped": signature[len(signature) // 2 :] + signature[: len(signature) // 2],
        }
        found |= {f"{kid}: {what}": f"{start}.{encoded(octets)}" for what, octets in changed.items()}
        others = {other: one.rpartition(".")[2] for other, one in good.items() if other != kid}
        found |= {f"{kid}: the signature of {other}": f"{start}.{one}" for other, one in others.items()}
    return found


def _swapped_algorithms(forger: Forger, keys: Mapping[str, tuple[str, Any]], good: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for kid, token in good.items():
        signature = token.rpartition(".")[2]
        for algorithm in _ALGORITHMS:
            if algorithm != keys[kid][0]:
                head = encoded(json.dumps({"alg": algorithm, "kid": kid, "typ": "JWT"}).encode())
                body = encoded(json.dumps(forger.claims()).encode())
                found[f"{kid} said to be {algorithm}"] = f"{head}.{body}.{signature}"
    return found


def _ecdsa(good: str) -> dict[str, str]:
    start = good.rpartition(".")[0]
    pairs = {
        "0, 1": (0, 1),
        "1, 0": (1, 0),
        "1, 1": (1, 1),
        "n, 1": (_N, 1),
        "1, n": (1, _N),
        "n, n": (_N, _N),
        "n - 1, 1": (_N - 1, 1),
        "n + 1, 1": (_N + 1, 1),
        "2^256 - 1, 1": (2**256 - 1, 1),
    }
    return {
        f"ECDSA of {what}": f"{start}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
        for what, (r, s) in pairs.items()
    }


def _eddsa(good: str) -> dict[str, str]:
    start, _, text = good.rpartition(".")
    signature = base64.urlsafe_b64decode(text + "==")
    s = int.from_bytes(signature[32:], "little")
    identity = (1).to_bytes(32, "little")
    return {
        "EdDSA with s + L": f"{start}.{encoded(signature[:32] + (s + _L).to_bytes(32, 'little'))}",
        "EdDSA with s = 0": f"{start}.{encoded(signature[:32] + bytes(32))}",
        "EdDSA with R = 1, s = 0": f"{start}.{encoded(identity + bytes(32))}",
        "EdDSA with s = L": f"{start}.{encoded(identity + _L.to_bytes(32, 'little'))}",
    }


def _rsa(good: str, key: rsa.RSAPrivateKey) -> dict[str, str]:
    start = good.rpartition(".")[0]
    numbers = key.private_numbers()
    digest = hashlib.sha256(start.encode()).digest()

    def signed(block: bytes) -> str:
        number = pow(int.from_bytes(block, "big"), numbers.d, numbers.public_numbers.n)
        return f"{start}.{encoded(number.to_bytes(256, 'big'))}"

    def padded(content: bytes, kind: int = 1, fill: bytes = b"\xff") -> bytes:
        return bytes([0, kind]) + fill * (253 - len(content)) + b"\0" + content

    whole = _SHA256 + digest
    blocks = {f"a prefix {what}": padded(prefix + digest) for what, prefix in _PREFIXES.items()}
    blocks |= {
        "block type 0": padded(whole, 0, b"\0"),
        "block type 2": padded(whole, 2),
        "padding of zeros": padded(whole, 1, b"\0"),
        "garbage at the end": b"\0\1" + b"\xff" * 8 + b"\0" + whole + bytes(245 - len(whole)),
        "no padding": b"\0\1\0" + whole + bytes(253 - len(whole)),
        "the digest of something else": padded(_SHA256 + hashlib.sha256(b"").digest()),
        "the digest alone": bytes(256 - len(digest)) + digest,
        "a shorter digest": padded(_SHA256 + digest[:-1]),
    }
    modulus = numbers.public_numbers.n
    raw = {"0": 0, "1": 1, "n - 1": modulus - 1, "n": modulus}
    return {
        **{f"RSA with {what}": signed(block) for what, block in blocks.items()},
        **{f"RSA of {what}": f"{start}.{encoded(value.to_bytes(256, 'big'))}" for what, value in raw.items()},
    }


def _kinds(forger: Forger) -> dict[str, str]:
    claims: dict[str, dict[str, Any]] = {
        "Cognito's ID token": {"token_use": "id"},
        "Keycloak's ID token": {"typ": "ID"},
        "Keycloak's refresh token": {"typ": "Refresh"},
        "Keycloak's offline token": {"typ": "Offline"},
        "an ID token by at_hash": {"at_hash": "LDktKdoQak3Pk0cnXxCltA"},
        "an ID token by c_hash": {"c_hash": "LDktKdoQak3Pk0cnXxCltA"},
        "a refresh token": {"token_type": "refresh"},
        "a refresh token by its type": {"type": "refresh"},
        "a logout token": {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
        "a security event": {"events": {"urn:ietf:params:scim:event:delete": {}}},
        "a machine's": {"gty": "client-credentials"},
        "a client's own": {"client_id": forger.claims()["sub"]},
        "a client's own by azp": {"azp": forger.claims()["sub"]},
    }
    types: tuple[Any, ...] = (
        "logout+jwt",
        "secevent+jwt",
        "dpop+jwt",
        "id_token",
        "JOSE",
        "JWE",
        "application/dpop+jwt",
        1,
        None,
        [],
        {},
    )
    return {what: forger.odd(**changes) for what, changes in claims.items()} | {
        f"typ {kind!r}": forger.headed(typ=kind) for kind in types
    }


def _times(forger: Forger) -> dict[str, str]:
    forms = (
        "253402300770",
        "253402300800",
        "1e12",
        "1e308",
        "1e400",
        "-1",
        "-1e9",
        "false",
        '""',
        "{}",
        "null",
        '"1e9"',
    )
    found = {}
    for claim in ("exp", "iat", "nbf", "auth_time"):
        body = json.dumps(forger.claims(**{claim: "@"}))
        for form in forms:
            token = forger.raw({"alg": "HS256", "kid": "hs"}, body.replace('"@"', form).encode())
            found[f"{claim} {form}"] = token
    return found


def _json(forger: Forger) -> dict[str, str]:
    claims = json.dumps(forger.claims())
    bodies: dict[str, bytes] = {
        "a BOM": b"\xef\xbb\xbf" + claims.encode(),
        "UTF-16": claims.encode("utf-16"),
        "single quotes": claims.replace('"', "'").encode(),
        "a comma at the end": (claims[:-1] + ",}").encode(),
        "a comment": ("/**/" + claims).encode(),
        "two documents": (claims + claims).encode(),
        "a NUL at the end": (claims + "\0").encode(),
        "a key without quotes": claims.replace('"iss"', "iss").encode(),
        "a document in a list": f"[{claims}]".encode(),
        "a document in text": json.dumps(claims).encode(),
        "nothing": b"",
        "null": b"null",
        "half a surrogate as iss": json.dumps(forger.claims(iss="\ud800")).encode(),
    }
    heads: dict[str, bytes] = {
        "a BOM": b'\xef\xbb\xbf{"alg": "HS256", "kid": "hs"}',
        "a comma at the end": b'{"alg": "HS256", "kid": "hs",}',
        "a second alg": b'{"alg": "HS256", "kid": "hs", "alg": "RS256"}',
        "a second kid": b'{"alg": "HS256", "kid": "hs", "kid": "rsa"}',
        "an alg in another case": b'{"ALG": "HS256", "kid": "hs"}',
        "an alg with a space": b'{"alg": "HS256 ", "kid": "hs"}',
        "crit that is empty": b'{"alg": "HS256", "kid": "hs", "crit": []}',
        "crit that is null": b'{"alg": "HS256", "kid": "hs", "crit": null}',
        "b64 that is true": b'{"alg": "HS256", "kid": "hs", "b64": true}',
        "enc and zip": b'{"alg": "dir", "enc": "A256GCM", "zip": "DEF", "kid": "hs"}',
    }
    return {f"a body with {what}": forger.raw({"alg": "HS256", "kid": "hs"}, body) for what, body in bodies.items()} | {
        f"a header with {what}": forger.raw(head, forger.claims()) for what, head in heads.items()
    }


def _serializations(good: str) -> dict[str, str]:
    head, body, signature = good.split(".")
    flattened = {"protected": head, "payload": body, "signature": signature}
    general = {"payload": body, "signatures": [{"protected": head, "signature": signature}]}
    return {
        "as flattened JSON": json.dumps(flattened),
        "as general JSON": json.dumps(general),
        "with an unprotected header": json.dumps({**flattened, "header": {"alg": "none"}}),
        "with colons": good.replace(".", ":"),
        "with encoded dots": good.replace(".", "%2E"),
        "with a dot before": f".{good}",
        "with a dot behind": f"{good}.",
        "header and signature swapped": f"{signature}.{body}.{head}",
        "with other padding": f"{head}==.{body}.{signature}",
        "of upper case": good.upper(),
    }
