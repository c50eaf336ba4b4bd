"""Tokens in the shape in which well-known issuers make them, and what each preset lets in of them and refuses.

`python -m tests.support.presets` prints the table of docs/tokens.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

NOW = 1_764_446_400
"""The time at which all of them were issued."""
UUID = "1f0c7a52-6f6c-4d3e-9d6b-0f3f3f6f9a10"
SECRET = "the-legacy-secret-of-a-project-of-ours"
_LOGOUT: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
_RSA = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
_EC = ec.generate_private_key(ec.SECP256R1())

Changes = Mapping[str, Any]
"""Of claims, or of the header where the name begins with `^`; None takes one out."""


@dataclass(frozen=True)
class Preset:
    """One provider: the settings it takes, a token and the keys as it makes them, and tokens beside the usual one.

    Attributes:
        settings: Beside `JWT_PROFILE` and the keys.
        key: What signs; text is a secret.
        published: Members of the key in its JWKS.
        more_keys: Other entries of that JWKS.
        good: Changes of the token that are let in, by what they are.
        refused: Changes that are refused.
        keys_at: Where the keys are looked for by default.
    """

    name: str
    settings: Mapping[str, str]
    header: Changes
    claims: Changes
    key: Any
    published: Changes = field(default_factory=dict)
    more_keys: tuple[Changes, ...] = ()
    good: Mapping[str, Changes] = field(default_factory=dict)
    refused: Mapping[str, Changes] = field(default_factory=dict)
    keys_at: str = ""

    def token(self, changes: Changes) -> str:
        """A token of the provider with these changes."""
        header = {**self.header, **{name[1:]: value for name, value in changes.items() if name.startswith("^")}}
        claims = {**self.claims, **{name: value for name, value in changes.items() if not name.startswith("^")}}
        key = SECRET if header["alg"] == "HS256" else self.key
        kept = {name: value for name, value in claims.items() if value is not None}
        shown = {name: value for name, value in header.items() if value is not None and name != "alg"}
        return jwt.encode(kept, key, header["alg"], headers={"typ": None, **shown})  # PyJWT adds one else

    def jwks(self) -> str:
        """The document with its public keys, as it publishes them."""
        entry = _public(self.key, self.header["alg"]) | {"kid": self.header["kid"], **self.published}
        return json.dumps({"keys": [*self.more_keys, entry]})


def _public(key: Any, algorithm: str) -> dict[str, Any]:
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {name: value for name, value in public.items() if name != "key_ops"}


def _other_key(kid: str, **members: Any) -> dict[str, Any]:
    return _public(_RSA[1], "RS256") | {"kid": kid, **members}


PRESETS = (
    Preset(
        "supabase",
        {"JWT_ISSUER": "https://project.supabase.co/auth/v1"},
        {"alg": "ES256", "kid": "b7e5c0a4-5b4e-4a53-8a3c-7d5a6c1f0e2d", "typ": "JWT"},
        {
            "iss": "https://project.supabase.co/auth/v1",
            "sub": UUID,
            "aud": "authenticated",
            "exp": NOW + 3600,
            "iat": NOW,
            "email": "ann@example.com",
            "phone": "",
            "app_metadata": {"provider": "email", "providers": ["email"]},
            "user_metadata": {"role": "admin"},
            "role": "authenticated",
            "aal": "aal1",
            "amr": [{"method": "password", "timestamp": NOW}],
            "session_id": "5a1d3a1e-2f4c-4b7e-a9b1-6c0d7e8f9a01",
            "is_anonymous": False,
        },
        _EC,
        {"alg": "ES256", "use": "sig", "key_ops": ["verify"], "ext": True},
        good={
            "`aud` as a list": {"aud": ["authenticated"]},
            "an anonymous sign-in": {"is_anonymous": True, "email": "", "amr": [{"method": "anonymous"}]},
            "by the legacy secret, with GoTrue's `kid`": {"^alg": "HS256", "^kid": "Rb1Q0a9cEVDKYkrr"},
            "by the legacy secret, without `kid`": {"^alg": "HS256", "^kid": None},
        },
        refused={
            "the `anon` key": {"^alg": "HS256", "iss": "supabase", "role": "anon", "sub": None, "session_id": None},
            "an `anon` role": {"role": "anon", "aud": "anon"},
            "a `service_role` key": {"role": "service_role"},
            "a role of one's own": {"role": "admin"},
            "no `session_id`": {"session_id": None},
            "a `sub` that is no UUID": {"sub": "ann"},
        },
        keys_at="https://project.supabase.co/auth/v1/.well-known/jwks.json",
    ),
    Preset(
        "firebase",
        {"JWT_ISSUER": "https://securetoken.google.com/our-project"},
        {"alg": "RS256", "kid": "38024562b7d0e2f5c2b7f0d4f3c1a9e8d7b6a5c4", "typ": "JWT"},
        {
            "iss": "https://securetoken.google.com/our-project",
            "aud": "our-project",
            "auth_time": NOW - 86_400,
            "user_id": "vYx8kQ2mZpR4tW6nB1cD3eF5gH7j",
            "sub": "vYx8kQ2mZpR4tW6nB1cD3eF5gH7j",
            "iat": NOW,
            "exp": NOW + 3600,
            "email": "ann@example.com",
            "email_verified": True,
            "firebase": {"identities": {"email": ["ann@example.com"]}, "sign_in_provider": "password"},
        },
        _RSA[0],
        {"alg": "RS256", "use": "sig"},
        (_other_key("the next one", alg="RS256", use="sig"),),
        good={
            "custom claims": {"role": "admin", "premium": True},
            "an anonymous sign-in": {"provider_id": "anonymous", "email": None},
        },
        refused={
            "of another project": {"aud": "their-project"},
            "another project's issuer": {"iss": "https://securetoken.google.com/their-project"},
            "a session cookie": {"iss": "https://session.firebase.google.com/our-project"},
            "no `auth_time`": {"auth_time": None},
            "`auth_time` in the future": {"auth_time": NOW + 3600},
            "an empty `sub`": {"sub": ""},
        },
        keys_at="https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com",
    ),
    Preset(
        "auth0",
        {"JWT_ISSUER": "https://tenant.eu.auth0.com/", "JWT_AUDIENCE": "https://api.example.com"},
        {"alg": "RS256", "typ": "JWT", "kid": "NjVBRjY5MDlCMUIwNzU4RTA2QzZFMDQ4QzQ2MDAyQjVDNjk1RTM2Qg"},
        {
            "https://example.com/roles": ["admin"],
            "iss": "https://tenant.eu.auth0.com/",
            "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
            "aud": ["https://api.example.com", "https://tenant.eu.auth0.com/userinfo"],
            "iat": NOW,
            "exp": NOW + 86_400,
            "azp": "my_client_id",
            "scope": "openid profile email offline_access",
            "permissions": ["read:all"],
        },
        _RSA[0],
        {"alg": "RS256", "use": "sig", "x5c": ["MIIDDTCCAfWgAwIBAgIJ"], "x5t": "NjVBRjY5MDlCMUIwNzU4RTA2"},
        (_other_key("the one that stands by", alg="RS256", use="sig"),),
        good={
            "for one audience": {"aud": "https://api.example.com"},
            "by the profile of RFC 9068": {"^typ": "at+jwt", "client_id": "my_client_id", "azp": None, "jti": "j"},
            "of a social sign-in": {"sub": "google-oauth2|103547991597142817347"},
        },
        refused={
            "an ID token": {"aud": "my_client_id", "nonce": "n", "sid": "s"},
            "an ID token, were the client listed as audience": {"nonce": "n"},
            "of a machine": {"sub": "my_client_id@clients", "gty": "client-credentials"},
            "for `userinfo` alone": {"aud": ["https://tenant.eu.auth0.com/userinfo"]},
            "the issuer without its slash": {"iss": "https://tenant.eu.auth0.com"},
            "a logout token": {"^typ": "logout+jwt", "events": _LOGOUT},
        },
        keys_at="https://tenant.eu.auth0.com/.well-known/jwks.json",
    ),
    Preset(
        "clerk",
        {"JWT_ISSUER": "https://clerk.example.com", "JWT_CLIENTS": "https://example.com"},
        {"alg": "RS256", "cat": "cl_B7d4PD222AAA", "kid": "ins_2GIoQhbUpy0hX7B2cVkuTMinXoD", "typ": "JWT"},
        {
            "azp": "https://example.com",
            "exp": NOW + 60,
            "fva": [7, -1],
            "iat": NOW,
            "iss": "https://clerk.example.com",
            "nbf": NOW - 10,
            "sid": "sess_2GbDB4enHdCa5vS1zpC3Xzg9tK9",
            "sub": "user_2GIpXOEpVyJw51rkZn9Kmnc6Sxr",
            "v": 2,
        },
        _RSA[0],
        {"alg": "RS256", "use": "sig"},
        good={
            "of a native app, without `azp`": {"azp": None},
            "of an organization": {"o": {"id": "org_2", "rol": "admin", "slg": "ours"}, "sts": "active"},
        },
        refused={
            "another page's": {"azp": "https://evil.example"},
            "a sign-in that is pending": {"sts": "pending"},
            "for somebody, by a template": {"aud": "their-api"},
            "not valid yet": {"nbf": NOW + 60},
        },
        keys_at="https://clerk.example.com/.well-known/jwks.json",
    ),
    Preset(
        "cognito",
        {
            "JWT_ISSUER": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI",
            "JWT_CLIENTS": "57cbishk4j24pabc1234567890,6ob1g2vn8e1u1b2c3d4e5f6g7h",
        },
        {"kid": "1234example=", "alg": "RS256"},
        {
            "sub": UUID,
            "device_key": "eu-west-1_aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "cognito:groups": ["testers"],
            "iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI",
            "version": 2,
            "client_id": "57cbishk4j24pabc1234567890",
            "origin_jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "event_id": "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee",
            "token_use": "access",
            "scope": "openid profile",
            "auth_time": NOW - 600,
            "exp": NOW + 3600,
            "iat": NOW,
            "jti": "cccccccc-bbbb-cccc-dddd-eeeeeeeeeeee",
            "username": "ann",
        },
        _RSA[0],
        {"alg": "RS256", "use": "sig"},
        (_other_key("of ID tokens=", alg="RS256", use="sig"),),
        good={"of the other client": {"client_id": "6ob1g2vn8e1u1b2c3d4e5f6g7h"}},
        refused={
            "an ID token": {
                "token_use": "id",
                "aud": "57cbishk4j24pabc1234567890",
                "client_id": None,
                "username": None,
            },
            "another client's": {"client_id": "3n4b5urk1ft4fl3mg5e62d9ado"},
            "no `client_id`": {"client_id": None},
            "no `token_use`": {"token_use": None},
            "of a machine": {"sub": "57cbishk4j24pabc1234567890", "username": None},
            "for another resource": {"aud": "https://api.example"},
            "`auth_time` in the future": {"auth_time": NOW + 600},
        },
        keys_at="https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI/.well-known/jwks.json",
    ),
    Preset(
        "keycloak",
        {"JWT_ISSUER": "https://sso.example.com/realms/ours", "JWT_CLIENTS": "app"},
        {"alg": "RS256", "typ": "JWT", "kid": "nnniBrxL0qhG79pkF3ccQj-l0jDmxKrYYy2YLlEe1s0"},
        {
            "exp": NOW + 300,
            "iat": NOW,
            "auth_time": NOW - 5,
            "jti": "onrtac:d58f5dc8-fd8f-462b-8a19-716f8f83985b",
            "iss": "https://sso.example.com/realms/ours",
            "aud": "account",
            "sub": "36fa0f91-f94d-4a0c-afed-6b7d952e47da",
            "typ": "Bearer",
            "azp": "app",
            "sid": "2a88c258-f73a-4103-b862-e1fbd8f4e04e",
            "acr": "1",
            "allowed-origins": ["https://example.com"],
            "realm_access": {"roles": ["offline_access", "uma_authorization"]},
            "resource_access": {"account": {"roles": ["view-profile"]}},
            "scope": "openid email profile",
            "email_verified": True,
            "preferred_username": "ann",
        },
        _RSA[0],
        {"alg": "RS256", "use": "sig", "x5c": ["MIICmzCCAYMCBgF"], "x5t#S256": "tM0"},
        (_other_key("for encryption", alg="RSA-OAEP", use="enc"),),
        good={
            "of a user without an account role": {"aud": None, "resource_access": None},
            "for several": {"aud": ["other-api", "account"]},
            "of a federated user": {"sub": "f:3d0c0b3e-8f3b-4c8e-9a52-0a1d2c3b4e5f:ann"},
            "with the `nonce` that versions before 25 repeat": {"nonce": "n"},
        },
        refused={
            "an ID token": {"typ": "ID", "aud": "app", "at_hash": "LDktKdoQak3Pk0cnXxCltA"},
            "a refresh token": {"typ": "Refresh", "aud": "https://sso.example.com/realms/ours"},
            "an offline token": {"typ": "Offline"},
            "a logout token": {"typ": "Logout", "^typ": "logout+jwt", "events": _LOGOUT},
            "bound to a key (DPoP)": {"typ": "DPoP"},
            "another client's": {"azp": "another-app"},
            "for another API alone": {"aud": ["other-api"]},
            "of another realm": {"iss": "https://sso.example.com/realms/master"},
        },
        keys_at="https://sso.example.com/realms/ours/protocol/openid-connect/certs",
    ),
    Preset(
        "rfc9068",
        {"JWT_ISSUER": "https://authorization-server.example.com/", "JWT_AUDIENCE": "https://rs.example.com/"},
        {"typ": "at+jwt", "alg": "RS256", "kid": "RjEwOwOA"},
        {
            "iss": "https://authorization-server.example.com/",
            "sub": "5ba552d67",
            "aud": "https://rs.example.com/",
            "exp": NOW + 3600,
            "iat": NOW,
            "jti": "dbe39bf3a3ba4238a513f51d6e1691c4",
            "client_id": "s6BhdRkqt3",
            "scope": "openid profile reademail",
        },
        _RSA[0],
        {},
        good={
            "the type in full": {"^typ": "application/at+jwt"},
            "`auth_time`, `acr` and `amr`": {"auth_time": NOW - 60, "acr": "0", "amr": ["pwd"]},
        },
        refused={
            "no type": {"^typ": None},
            "an ID token": {"^typ": "JWT", "aud": "s6BhdRkqt3"},
            "no `client_id`": {"client_id": None},
            "no `jti`": {"jti": None},
            "no `aud`": {"aud": None},
            "a client's own": {"sub": "s6BhdRkqt3"},
            "a logout token": {"^typ": "logout+jwt", "events": _LOGOUT},
        },
    ),
)
"""The presets in the order of the docs."""


def table() -> str:
    """The tables of docs/tokens.md, one for each preset."""
    return "\n".join(map(_section, PRESETS))


def _section(preset: Preset) -> str:
    settings = ", ".join(f"`{name}={value}`" for name, value in {"JWT_PROFILE": preset.name, **preset.settings}.items())
    rows = {
        "settings": settings,
        "keys": f"`{preset.keys_at}`" if preset.keys_at else "set `JWKS_URL` or `JWKS_FILE`",
        "header": _members(preset.header),
        "claims": _members(preset.claims),
        "let in too": "; ".join(f"{what} ({_members(changes)})" for what, changes in preset.good.items()),
        "refused": "; ".join(f"{what} ({_members(changes)})" for what, changes in preset.refused.items()),
    }
    return f"### {preset.name}\n\n| | |\n|---|---|\n" + "".join(f"| {name} | {text} |\n" for name, text in rows.items())


def _members(changes: Changes) -> str:
    return ", ".join(_member(name, value) for name, value in changes.items())


def _member(name: str, value: object) -> str:
    place = f"header `{name[1:]}`" if name.startswith("^") else f"`{name}`"
    if value is None:
        return f"no {place}"
    if isinstance(value, int) and not isinstance(value, bool) and value > NOW // 2:
        return place
    text = json.dumps(value).replace("|", "\\|")
    return f"{place} `{text}`" if len(text) <= 40 else place


if __name__ == "__main__":
    print(table())
