"""Describes tokens of well-known issuers: the claims they lack, and the marks of access tokens. Pure.

Taken from the providers' own documents and from tokens as they issue them; docs/tokens.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.auth.model import ACCESS_TOKEN_TYPES, OPTIONAL_CLAIMS, ROLE, ClaimRule

_ROLE_AND_SESSION = frozenset({"role", "session_id"})
_NO_NONCE = ClaimRule("nonce", frozenset())  # OpenID Connect puts it into ID tokens


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of issuer. The settings of an app go before what stands here.

    Attributes:
        audiences: Whom the tokens are for, where all tokens of such an issuer are for the same.
        required: Claims that must be there.
        roles: The values of `role` that are users; None: it is no claim of the issuer's.
        uuid_subjects: User ids are UUIDs.
        types: What tokens may call themselves in the header, in lower case.
        rules: What other claims must say where they are present.
        client_optional: Tokens may leave open to which client they were issued, also where clients are listed.
        id_tokens: Users show ID tokens.
        asks_for: Settings of which one has to be set, since the tokens of all apps of such an issuer are alike else.
        keys: Where the keys are, from the issuer's name on; a URL of its own where all such issuers share them.
        project_audience: Tokens are for the project that the issuer's name ends in.
    """

    audiences: tuple[str, ...] = ()
    required: frozenset[str] = OPTIONAL_CLAIMS - _ROLE_AND_SESSION
    roles: frozenset[str] | None = None
    uuid_subjects: bool = False
    types: frozenset[str] = ACCESS_TOKEN_TYPES
    rules: tuple[ClaimRule, ...] = ()
    client_optional: bool = False
    id_tokens: bool = False
    asks_for: tuple[str, ...] = ()
    keys: str = ""
    project_audience: bool = False


_OWN = Profile((ROLE,), OPTIONAL_CLAIMS, frozenset({ROLE}), uuid_subjects=True)

PROFILES: dict[str, Profile] = {
    # Whoever signs tokens for us alone.
    "": _OWN,
    "supabase": Profile((ROLE,), OPTIONAL_CLAIMS, frozenset({ROLE}), uuid_subjects=True, keys="/.well-known/jwks.json"),
    # What a client gets is an ID token; for APIs of one's own there is no other.
    "firebase": Profile(
        required=frozenset({"iat", "aud", "auth_time"}),
        id_tokens=True,
        keys="https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com",
        project_audience=True,
    ),
    "auth0": Profile(rules=(_NO_NONCE,), asks_for=("JWT_AUDIENCE",), keys="/.well-known/jwks.json"),
    # `azp` is the web page that asked for the token: native apps have none. `sts`: a sign-in may not be finished yet.
    "clerk": Profile(
        required=frozenset({"iat"}),
        rules=(ClaimRule("sts", frozenset({"active"})), _NO_NONCE),
        client_optional=True,
        keys="/.well-known/jwks.json",
    ),
    "cognito": Profile(
        required=frozenset({"iat", "token_use", "client_id"}),
        rules=(ClaimRule("token_use", frozenset({"access"})),),
        uuid_subjects=True,
        asks_for=("JWT_CLIENTS",),
        keys="/.well-known/jwks.json",
    ),
    # Unless a mapper adds another audience, a token is for "account", and only if its user may see the account.
    "keycloak": Profile(
        audiences=("account",),
        required=frozenset({"iat", "typ", "azp"}),
        rules=(ClaimRule("typ", frozenset({"Bearer"})),),
        asks_for=("JWT_CLIENTS", "JWT_AUDIENCE"),
        keys="/protocol/openid-connect/certs",
    ),
    # RFC 9068, sections 2.1 and 2.2.
    "rfc9068": Profile(
        required=frozenset({"iat", "aud", "client_id", "jti"}),
        types=frozenset({"at+jwt"}),
        rules=(_NO_NONCE,),
        asks_for=("JWT_AUDIENCE",),
    ),
}
"""By what `SYNCBEAT_JWT_PROFILE` calls them."""
