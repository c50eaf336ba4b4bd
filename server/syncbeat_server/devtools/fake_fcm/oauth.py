"""Google's OAuth token endpoint for service accounts: the JWT-bearer grant (RFC 7523)."""

from __future__ import annotations

import secrets
import time
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from syncbeat_server.devtools.fake_fcm.answers import Answer, as_json

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SCOPES = frozenset(
    {
        "https://www.googleapis.com/auth/firebase.messaging",
        "https://www.googleapis.com/auth/cloud-platform",
    }
)
_MAX_LIFE_S = 3600
_MAX_TOKENS = 10_000
_TIMEFRAME = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)


class Issuer:
    """One service account, and the access tokens handed out to it.

    Making one generates an RSA key of 2048 bits, which takes about 0.1 s of CPU.
    """

    def __init__(self, project_id: str, token_life_s: int) -> None:
        self._project_id = project_id
        self._token_life_s = token_life_s
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._public_key = self._key.public_key()
        self._key_id = secrets.token_hex(20)
        self._email = f"fake-fcm@{project_id}.iam.gserviceaccount.com"
        self.calls = 0
        # The whole value of the authorization header -> wall time at which it expires: one look-up per send.
        self.live: dict[bytes, float] = {}

    def service_account(self, token_uri: str) -> dict[str, str]:
        """The service account's JSON, as Google's console lets one download it."""
        private_key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": self._project_id,
            "private_key_id": self._key_id,
            "private_key": private_key.decode(),
            "client_email": self._email,
            "client_id": "100000000000000000001",
            "auth_uri": token_uri.removesuffix("/token") + "/auth",
            "token_uri": token_uri,
        }

    def grant(self, body: bytes, token_uri: str) -> Answer:
        """Answer a `POST /token` with the form `body`; `token_uri` is the audience the assertion must have."""
        self.calls += 1
        form = parse_qs(body.decode("latin-1"), max_num_fields=20)
        grant_type = form.get("grant_type", [""])[0]
        if grant_type != GRANT_TYPE:
            return _refusal("unsupported_grant_type", f"Invalid grant_type: {grant_type}")
        assertion = form.get("assertion", [""])[0]
        if not assertion:
            return _refusal("invalid_request", "Missing parameter: assertion")
        refusal = self._check(assertion, token_uri)
        if refusal is not None:
            return refusal
        return as_json(
            {"access_token": self._new_token(), "expires_in": self._token_life_s, "token_type": "Bearer"}
        )

    def refusal_of(self, authorization: bytes | None, now: float) -> str | None:
        """Why a send with this authorization header is refused, as a Google reason, or None when it is good."""
        if not authorization:
            return "CREDENTIALS_MISSING"
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            return "CREDENTIALS_MISSING"
        expires = self.live.get(b"Bearer " + token)
        if expires is None:
            return "ACCESS_TOKEN_TYPE_UNSUPPORTED"
        return "ACCESS_TOKEN_EXPIRED" if expires <= now else None

    def _check(self, assertion: str, token_uri: str) -> Answer | None:
        try:
            key_id = jwt.get_unverified_header(assertion).get("kid", self._key_id)
            claims: dict[str, Any] = jwt.decode(
                assertion,
                self._public_key,
                algorithms=["RS256"],
                audience=token_uri,
                options={"require": ["iss", "aud", "iat", "exp"]},
            )
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            return _refusal("invalid_grant", _TIMEFRAME)
        except jwt.InvalidAudienceError:
            return _refusal("invalid_grant", "Invalid JWT: Failed audience check.")
        except jwt.MissingRequiredClaimError as missing:
            return _refusal("invalid_grant", f"Invalid JWT: Required claim {missing.claim} is missing.")
        except jwt.InvalidTokenError:
            return _refusal("invalid_grant", "Invalid JWT Signature.")
        if key_id != self._key_id:
            return _refusal("invalid_grant", "Invalid JWT Signature.")
        if claims["iss"] != self._email:
            return _refusal("invalid_grant", "Invalid grant: account not found")
        if claims["exp"] - claims["iat"] > _MAX_LIFE_S:
            return _refusal("invalid_grant", _TIMEFRAME)
        if _SCOPES.isdisjoint(str(claims.get("scope", "")).split()):
            return _refusal("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        return None

    def _new_token(self) -> str:
        # About 1 kB, as long as Google's are: the length is felt in headers and buffers.
        token = "ya29.c." + secrets.token_urlsafe(762)
        if len(self.live) >= _MAX_TOKENS:
            del self.live[next(iter(self.live))]
        self.live[b"Bearer " + token.encode()] = time.time() + self._token_life_s
        return token


def _refusal(error: str, description: str) -> Answer:
    return as_json({"error": error, "error_description": description}, 400)
