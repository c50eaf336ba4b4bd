"""Access tokens that are forged or odd, of every kind we know: none may be let in.

Sources: RFC 8725, the advisories of PyJWT and of other libraries, the shape of Supabase's API keys.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import KeyTable, key_table, public_jwks
from tests.support.forged_token_kinds import families

USER = "1f0c7a52-6f6c-4d3e-9d6b-0f3f3f6f9a10"
SECRET, OTHER_SECRET = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
CANARY = "canary-3f9d1c77"
"""Stands in every token: it must be found in no log and in no message."""

HOSTED = Issuer("default", "https://project.example/auth/v1")
OURS = Issuer("default", "syncbeat:default", own_sessions=True)
SHOP = Issuer("shop", "https://shop.example", ("shop",))
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_EC = ec.generate_private_key(ec.SECP256R1())
_ED = ed25519.Ed25519PrivateKey.generate()
_STRANGERS = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_PRIVATE: dict[str, tuple[str, Any]] = {
    "hs": ("HS256", SECRET),
    "rsa": ("RS256", _RSA),
    "ec": ("ES256", _EC),
    "ed": ("EdDSA", _ED),
}
_LONG = "A" * 10_000


def table() -> KeyTable:
    """The keys that are known: of one hosted issuer, of our own sessions and of another app's issuer."""
    rows = [KeyRow(HOSTED, "hs", "HS256", SECRET), KeyRow(SHOP, "hs", "HS256", OTHER_SECRET)]
    rows += [KeyRow(HOSTED, kid, name, key.public_key()) for kid, (name, key) in _PRIVATE.items() if kid != "hs"]
    return key_table([*rows, KeyRow(OURS, "s1", "ES256", _EC.public_key()), KeyRow(OURS, "hs", "HS256", SECRET)])


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _json(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _public(key: Any, form: str = "PEM") -> bytes:
    encoding = serialization.Encoding.PEM if form == "PEM" else serialization.Encoding.DER
    octets: bytes = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    return octets


@dataclass(frozen=True)
class Forger:
    """Makes tokens as of a moment."""

    now: datetime

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims; one that is changed to None is left out."""
        at = int(self.now.timestamp())
        good: dict[str, Any] = {"iss": HOSTED.name, "aud": "authenticated", "sub": USER, "iat": at, "exp": at + 600}
        good |= {"role": "authenticated", "session_id": "s", "email": CANARY, **changes}
        return {name: value for name, value in good.items() if value is not None}

    def raw(self, header: object, payload: object, secret: bytes = SECRET.encode()) -> str:
        """Signed by HMAC, whatever the header says."""
        start = f"{_encoded(_json(header))}.{_encoded(_json(payload))}"
        return f"{start}.{_encoded(hmac.new(secret, start.encode(), hashlib.sha256).digest())}"

    def odd(self, **changes: Any) -> str:
        """A token with a right signature and odd claims."""
        return self.raw({"alg": "HS256", "kid": "hs"}, self.claims(**changes))

    def headed(self, **header: Any) -> str:
        """A token with a right signature by the secret and an odd header."""
        whole = {"alg": "HS256", "kid": "hs", **header}
        return self.raw({name: value for name, value in whole.items() if value is not ...}, self.claims())

    def good(self, kid: str = "hs", **changes: Any) -> str:
        """One that is let in."""
        algorithm, key = _PRIVATE[kid]
        return jwt.encode(self.claims(**changes), key, algorithm=algorithm, headers={"kid": kid})

    def good_tokens(self) -> Mapping[str, str]:
        """One for each algorithm, all of them good."""
        return {kid: self.good(kid) for kid in _PRIVATE}

    def jwks(self) -> bytes:
        """Return what the hosted issuer publishes."""
        return public_jwks([KeyRow(HOSTED, kid, name, key) for kid, (name, key) in _PRIVATE.items() if kid != "hs"])

    def forged(self) -> Mapping[str, str]:
        """All of them, by what is odd."""
        return {
            **self._algorithms(),
            **self._headers(),
            **self._signatures(),
            **self._claims(),
            **self._times(),
            **self._shapes(),
            **families(self, _PRIVATE),
        }

    def _algorithms(self) -> dict[str, str]:
        named = {
            f"alg {name!r}": name for name in ("none", "None", "NONE", "nOnE", "", None, "HS257", "hs256", 1, ["HS256"])
        }
        unsigned = {f"{what}, unsigned": self.headed(alg=name).rsplit(".", 1)[0] + "." for what, name in named.items()}
        signed = {f"{what}, signed": self.headed(alg=name) for what, name in named.items()}
        confused = {
            f"HS256 by the public {kid} key as {form}": self.raw(
                {"alg": "HS256", "kid": kid}, self.claims(), _public(_PRIVATE[kid][1], form)
            )
            for kid in ("rsa", "ec", "ed")
            for form in ("PEM", "DER")
        }
        jwk = json.dumps(jwt.algorithms.ECAlgorithm.to_jwk(_EC.public_key(), as_dict=True)).encode()
        return {
            **unsigned,
            **signed,
            **confused,
            "no alg": self.headed(alg=...),
            "HS256 by the public JWK": self.raw({"alg": "HS256", "kid": "ec"}, self.claims(), jwk),
            "HS256 by the secret, under the RSA key": self.headed(kid="rsa"),
            "RS256 said, HMAC done": self.headed(alg="RS256"),
            "RS256 under the secret's kid": jwt.encode(self.claims(), _RSA, "RS256", headers={"kid": "hs"}),
            "ES256 under the RSA kid": jwt.encode(self.claims(), _EC, "ES256", headers={"kid": "rsa"}),
            "PS256 by the RSA key": jwt.encode(self.claims(), _RSA, "PS256", headers={"kid": "rsa"}),
            "RS512 by the RSA key": jwt.encode(self.claims(), _RSA, "RS512", headers={"kid": "rsa"}),
            "HS512 by the secret": jwt.encode(self.claims(), SECRET * 2, "HS512", headers={"kid": "hs"}),
        }

    def _headers(self) -> dict[str, str]:
        stranger = jwt.algorithms.RSAAlgorithm.to_jwk(_STRANGERS.public_key(), as_dict=True)
        brought = {
            f"{name} brought along": jwt.encode(self.claims(), _STRANGERS, "RS256", headers={"kid": "rsa", name: value})
            for name, value in (
                ("jwk", stranger),
                ("jku", "https://evil.example/jwks"),
                ("x5u", "https://evil.example/cert"),
                ("x5c", ["MIIB"]),
            )
        }
        kids: dict[str, Any] = {
            "of nobody": "k9",
            "that is a path": "../../../../dev/null",
            "that is SQL": "hs' OR '1'='1",
            "of 7 KB": "k" * 7_000,
            "that is a number": 1,
            "that is null": None,
            "that is a list": ["hs"],
            "with a NUL": "hs\0",
            "in another case": "HS",
        }
        return {
            **brought,
            **{f"a kid {what}": self.headed(kid=kid) for what, kid in kids.items()},
            "no kid, where there are several": self.headed(kid=...),
            "crit": self.headed(crit=["exp"]),
            "b64": self.headed(b64=False, crit=["b64"]),
            "two algs": self.raw(b'{"alg": "HS256", "kid": "hs", "alg": "none"}', self.claims()).rsplit(".", 1)[0]
            + ".",
            "a header that is a list": self.raw(["HS256"], self.claims()),
            "a header that is no JSON": self.raw(b"{", self.claims()),
        }

    def _signatures(self) -> dict[str, str]:
        start, _, signature = self.good().rpartition(".")
        head, _, _ = self.good().split(".")
        made = self.good("ec").rsplit(".", 1)[0]
        der = _EC.sign(made.encode(), ec.ECDSA(hashes.SHA256()))
        # 32 octets leave two bits of the last character unused: with one of them set it says the same.
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        other_bits = alphabet[alphabet.index(signature[-1]) + 1]
        return {
            "no signature": f"{start}.",
            "half a signature": f"{start}.{signature[:20]}",
            "a longer signature": f"{start}.{signature}AAAA",
            "padded": f"{start}.{signature}=",
            "a space at the end": f"{start}.{signature} ",
            "a line break within": f"{start}.{signature[:10]}\n{signature[10:]}",
            "the other alphabet": f"{start}.+/{signature[2:]}",
            "other bits at the end": f"{start}.{signature[:-1]}{other_bits}",
            "by another secret": self.raw({"alg": "HS256", "kid": "hs"}, self.claims(), OTHER_SECRET.encode()),
            "by nothing": self.raw({"alg": "HS256", "kid": "hs"}, self.claims(), b""),
            "of another token": f"{head}.{_encoded(_json(self.claims(sub=USER.replace('1', '2'))))}.{signature}",
            "ECDSA of zeros": f"{made}.{_encoded(bytes(64))}",
            "ECDSA in DER": f"{made}.{_encoded(der)}",
            "EdDSA of zeros": f"{self.good('ed').rsplit('.', 1)[0]}.{_encoded(bytes(64))}",
            "by a stranger's RSA key": jwt.encode(self.claims(), _STRANGERS, "RS256", headers={"kid": "rsa"}),
        }

    def _claims(self) -> dict[str, str]:
        missing = {
            f"no {name}": self.odd(**{name: None}) for name in ("iss", "aud", "sub", "role", "session_id", "iat", "exp")
        }
        issuers = (
            "https://project.example",
            f"{HOSTED.name}/",
            f"{HOSTED.name}.evil.example",
            "",
            7,
            [HOSTED.name],
        )
        audiences: tuple[Any, ...] = (
            "anon",
            "",
            "authenticate",
            "Authenticated",
            ["anon"],
            [],
            7,
            {"authenticated": 1},
        )
        subjects: tuple[Any, ...] = ("", "ann", "a" * 129, f"{USER}0", f"{USER}\0", f" {USER}", "\ud800", 7, [USER])
        roles: tuple[Any, ...] = ("anon", "service_role", "admin", "", ["authenticated"], True)
        sessions: tuple[Any, ...] = ("", "x" * 129, 7, "a\nb", ["s"])
        own: dict[str, Any] = {"iss": OURS.name, "gen": 0, "ctr": 0}
        numbers: dict[str, dict[str, Any]] = {
            "no gen": {"gen": None},
            "gen -1": {"gen": -1},
            "gen 1.0": {"gen": 1.0},
            "ctr '1'": {"ctr": "1"},
        }
        return {
            **missing,
            **{f"iss {value!r}": self.odd(iss=value) for value in issuers},
            **{f"aud {value!r}": self.odd(aud=value) for value in audiences},
            **{f"sub {value!r:.20}": self.odd(sub=value) for value in subjects},
            **{f"role {value!r}": self.odd(role=value) for value in roles},
            **{f"session_id {value!r:.20}": self.odd(session_id=value) for value in sessions},
            **{f"our own with {what}": self.odd(**{**own, **changes}) for what, changes in numbers.items()},
            "of another app's issuer": self.odd(iss=SHOP.name, aud=SHOP.audiences[0]),
            "our own by the issuer's key": jwt.encode(self.claims(**own), _RSA, "RS256", headers={"kid": "rsa"}),
            "Supabase's anon key": self.raw(
                {"alg": "HS256", "typ": "JWT"},
                {"iss": "supabase", "ref": CANARY, "role": "anon", "iat": 1, "exp": 2**33},
            ),
            "an anon key of the issuer": self.odd(role="anon", sub=None, session_id=None),
            "a service_role key of the issuer": self.odd(role="service_role", sub=None, session_id=None),
        }

    def _times(self) -> dict[str, str]:
        at = int(self.now.timestamp())
        odd_times: dict[str, Any] = {
            "in words": "tomorrow",
            "as text": str(at + 600),
            "true": True,
            "a list": [at],
            "beyond all time": 10**18,
            "before all time": -(10**18),
        }
        return {
            **{f"exp {what}": self.odd(exp=value) for what, value in odd_times.items()},
            **{f"iat {what}": self.odd(iat=value) for what, value in odd_times.items() if what != "before all time"},
            "issued in the future": self.odd(iat=at + 300),
            "not valid yet": self.odd(nbf=at + 300),
            "nbf in words": self.odd(nbf="soon"),
            "exp NaN": self.raw({"alg": "HS256", "kid": "hs"}, json.dumps(self.claims(exp=float("nan"))).encode()),
            "expired and forged": self.raw({"alg": "HS256", "kid": "hs"}, self.claims(exp=at - 999), b"x" * 32),
        }

    def _shapes(self) -> dict[str, str]:
        head, body, signature = self.good().split(".")
        deep = b'{"a":' * 3_000
        return {
            "empty": ".",
            "dots": "....",
            "two parts": f"{head}.{body}",
            "four parts": f"{head}.{body}.{signature}.{signature}",
            "five parts, as a JWE": f"{head}.{body}.{signature}.{signature}.{signature}",
            "no header": f".{body}.{signature}",
            "no body": f"{head}..{signature}",
            "16 KB": self.odd(more=_LONG + _LONG[:6_000]),
            "a body that is a list": self.raw({"alg": "HS256", "kid": "hs"}, [1, 2]),
            "a body that is text": self.raw({"alg": "HS256", "kid": "hs"}, "text"),
            "a body that is no UTF-8": self.raw({"alg": "HS256", "kid": "hs"}, b"\xff\xfe"),
            "a body without end": self.raw({"alg": "HS256", "kid": "hs"}, deep),
            "a number without end": self.raw({"alg": "HS256", "kid": "hs"}, b'{"iss": ' + b"9" * 5_000 + b"}"),
            "two subs": self.raw(
                {"alg": "HS256", "kid": "hs"}, _json(self.claims())[:-1] + b', "sub": "service_role", "sub": "x"}'
            ),
            "not a token": CANARY,
            "a token in a token": self.raw({"alg": "HS256", "kid": "hs", "cty": "JWT"}, self.good().encode()),
        }
