"""Google's OAuth token endpoint for service accounts: the JWT-bearer grant (RFC 7523)."""

from __future__ import annotations

import secrets
import time
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from syncbeat_devtools.fake_fcm.responses import Response, json_response

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SCOPES = frozenset(
    {
        "https://www.googleapis.com/auth/firebase.messaging",
        "https://www.googleapis.com/auth/cloud-platform",
    }
)
# google-auth always names Google's own endpoint as the audience; other clients name token_uri.
_GOOGLE_TOKEN_URI = "https://oauth2.googleapis.com/token"
_MAX_LIFE_S = 3600
_MAX_TOKENS = 1_000
_TIMEFRAME = (
    "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
    "Check your iat and exp values in the JWT claim."
)


class _OAuthError(Exception):
    """A refused grant; `error` is a code of RFC 6749, 5.2."""

    def __init__(self, error: str, description: str, *, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status

    def response(self) -> Response:
        """Return Google's response."""
        return json_response({"error": self.error, "error_description": self.description}, self.status)


class TokenEndpoint:
    """The token endpoint of one service account, with the access tokens it has issued.

    Creating one generates an RSA key of 2048 bits, which takes about 0.1 s of CPU.
    """

    def __init__(self, project_id: str, token_life_s: int) -> None:
        self._project_id = project_id
        self._token_life_s = token_life_s
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._public_key = self._key.public_key()
        self._key_id = secrets.token_hex(20)
        self._email = f"fake-fcm@{project_id}.iam.gserviceaccount.com"
        self.calls = 0
        # Expiry (wall time) by the full value of the authorization header, so that a send costs one lookup.
        self.active_tokens: dict[bytes, float] = {}

    def service_account(self, token_uri: str) -> dict[str, str]:
        """Return the service account's JSON in the form that Google's console offers for download."""
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

    def grant(self, body: bytes, token_uri: str) -> Response:
        """Answer a `POST /token` with the form `body`.

        The assertion must have the audience `token_uri`, by which the client reached the fake, or Google's own.
        """
        self.calls += 1
        try:
            self._check(_assertion(body), token_uri)
        except _OAuthError as error:
            return error.response()
        return json_response(
            {"access_token": self._new_token(), "expires_in": self._token_life_s, "token_type": "Bearer"}
        )

    def rejection_reason(self, authorization: bytes | None, now: float) -> str | None:
        """Return Google's reason to refuse a send with this authorization header; None if the token is valid."""
        if not authorization:
            return "CREDENTIALS_MISSING"
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not token:
            return "CREDENTIALS_MISSING"
        expires = self.active_tokens.get(b"Bearer " + token)
        if expires is None:
            return "ACCESS_TOKEN_TYPE_UNSUPPORTED"
        return "ACCESS_TOKEN_EXPIRED" if expires <= now else None

    def _check(self, assertion: str, token_uri: str) -> None:
        claims = self._claims(assertion, token_uri)
        if claims["iss"] != self._email:
            raise _OAuthError("invalid_grant", "Invalid grant: account not found")
        if claims.get("sub", self._email) != self._email:
            text = "Client is unauthorized to retrieve access tokens using this method."
            raise _OAuthError("unauthorized_client", text, status=401)
        if int(claims["exp"]) - int(claims["iat"]) > _MAX_LIFE_S:
            raise _OAuthError("invalid_grant", _TIMEFRAME)
        if _SCOPES.isdisjoint(str(claims.get("scope", "")).split()):
            raise _OAuthError("invalid_scope", "Invalid OAuth scope or ID token audience provided.")

    def _claims(self, assertion: str, token_uri: str) -> dict[str, Any]:
        try:
            token = jwt.decode_complete(
                assertion,
                self._public_key,
                algorithms=["RS256"],
                audience=[token_uri, _GOOGLE_TOKEN_URI],
                options={"require": ["iss", "aud", "iat", "exp"]},
            )
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise _OAuthError("invalid_grant", _TIMEFRAME) from None
        except jwt.InvalidAudienceError:
            raise _OAuthError("invalid_grant", "Invalid JWT: Failed audience check.") from None
        except jwt.MissingRequiredClaimError as missing:
            text = f"Invalid JWT: Required claim {missing.claim} is missing."
            raise _OAuthError("invalid_grant", text) from None
        except (jwt.InvalidTokenError, OverflowError):  # OverflowError: a time is out of range
            raise _OAuthError("invalid_grant", "Invalid JWT Signature.") from None
        if token["header"].get("kid", self._key_id) != self._key_id:
            raise _OAuthError("invalid_grant", "Invalid JWT Signature.")
        claims: dict[str, Any] = token["payload"]
        return claims

    def _new_token(self) -> str:
        # About 1 kB, the length of Google's, since it matters for headers and buffers.
        token = "ya29.c." + secrets.token_urlsafe(762)
        if len(self.active_tokens) >= _MAX_TOKENS:
            del self.active_tokens[next(iter(self.active_tokens))]
        self.active_tokens[b"Bearer " + token.encode()] = time.time() + self._token_life_s
        return token


def _assertion(body: bytes) -> str:
    try:
        form = parse_qs(body.decode("latin-1"), max_num_fields=20)
    except ValueError:
        raise _OAuthError("invalid_request", "Too many parameters.") from None
    grant_type = form.get("grant_type", [""])[0]
    if grant_type != GRANT_TYPE:
        raise _OAuthError("unsupported_grant_type", f"Invalid grant_type: {grant_type[:100]}")
    assertion = form.get("assertion", [""])[0]
    if not assertion:
        raise _OAuthError("invalid_request", "Missing parameter: assertion")
    return assertion
