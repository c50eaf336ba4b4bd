"""Presets of well-known token issuers: the claims they omit, and the marks of their access tokens. Pure.

Taken from the providers' documentation and from tokens as they issue them; docs/tokens.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.auth.model import ACCESS_TOKEN_TYPES, OPTIONAL_CLAIMS, ROLE, ClaimRule

_ROLE_AND_SESSION = frozenset({"role", "session_id"})
_NO_NONCE = ClaimRule("nonce", frozenset())  # OpenID Connect puts it into ID tokens


@dataclass(frozen=True, slots=True)
class IssuerPreset:
    """The properties of one kind of issuer. The settings of an app override them.

    Attributes:
        audiences: Audiences that all tokens of such an issuer share.
        required: Claims that must be present.
        roles: Values of `role` that denote users; None: the issuer does not use `role`.
        uuid_subjects: User ids are UUIDs.
        types: Values of the header's `typ`, in lower case.
        rules: Accepted values of further claims, if present.
        client_optional: Tokens may lack a client even if clients are listed in the settings.
        accept_id_tokens: Users present ID tokens.
        needs_one_of: Settings of which at least one must be set, because tokens for all apps of the issuer look alike.
        keys: The path of the JWKS below the issuer's URL, or a full URL if all such issuers share it.
        project_audience: The audience is the project id that ends the issuer's name.
    """

    audiences: tuple[str, ...] = ()
    required: frozenset[str] = OPTIONAL_CLAIMS - _ROLE_AND_SESSION
    roles: frozenset[str] | None = None
    uuid_subjects: bool = False
    types: frozenset[str] = ACCESS_TOKEN_TYPES
    rules: tuple[ClaimRule, ...] = ()
    client_optional: bool = False
    accept_id_tokens: bool = False
    needs_one_of: tuple[str, ...] = ()
    keys: str = ""
    project_audience: bool = False


_OWN = IssuerPreset((ROLE,), OPTIONAL_CLAIMS, frozenset({ROLE}), uuid_subjects=True)

ISSUER_PRESETS: dict[str, IssuerPreset] = {
    # A secret or key that signs tokens for this service alone.
    "": _OWN,
    "supabase": IssuerPreset(
        (ROLE,), OPTIONAL_CLAIMS, frozenset({ROLE}), uuid_subjects=True, keys="/.well-known/jwks.json"
    ),
    # Firebase gives clients ID tokens only, and they are what its users present to APIs.
    "firebase": IssuerPreset(
        required=frozenset({"iat", "aud", "auth_time"}),
        accept_id_tokens=True,
        keys="https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com",
        project_audience=True,
    ),
    "auth0": IssuerPreset(rules=(_NO_NONCE,), needs_one_of=("JWT_AUDIENCE",), keys="/.well-known/jwks.json"),
    # `azp` is the origin of the web page that asked for the token; native apps send none. `sts` is "pending" until the
    # sign-in is complete.
    "clerk": IssuerPreset(
        required=frozenset({"iat"}),
        rules=(ClaimRule("sts", frozenset({"active"})), _NO_NONCE),
        client_optional=True,
        keys="/.well-known/jwks.json",
    ),
    "cognito": IssuerPreset(
        required=frozenset({"iat", "token_use", "client_id"}),
        rules=(ClaimRule("token_use", frozenset({"access"})),),
        uuid_subjects=True,
        needs_one_of=("JWT_CLIENTS",),
        keys="/.well-known/jwks.json",
    ),
    # Without an audience mapper a token is for "account", and only if the user may view the account.
    "keycloak": IssuerPreset(
        audiences=("account",),
        required=frozenset({"iat", "typ", "azp"}),
        rules=(ClaimRule("typ", frozenset({"Bearer"})),),
        needs_one_of=("JWT_CLIENTS", "JWT_AUDIENCE"),
        keys="/protocol/openid-connect/certs",
    ),
    # RFC 9068, sections 2.1 and 2.2.
    "rfc9068": IssuerPreset(
        required=frozenset({"iat", "aud", "client_id", "jti"}),
        types=frozenset({"at+jwt"}),
        rules=(_NO_NONCE,),
        needs_one_of=("JWT_AUDIENCE",),
    ),
}
"""Presets by the value of `SYNCBEAT_JWT_PROFILE`."""
