"""Checks the claims of an access token besides its subject: times, audience, role, token type and client. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from syncbeat_server.auth.model import Issuer
from syncbeat_server.auth.tokens.redacted_claims import show
from syncbeat_server.errors import TokenExpired, TokenFault, TokenInvalid

# Roles of Supabase's API keys, which are signed with the users' secret; every app ships the first. They name no user.
_API_KEY_ROLES = frozenset({"anon", "service_role"})
_CLIENT_CLAIMS = ("azp", "client_id")
_TYPE_CLAIMS = ("typ", "type", "token_type", "token_use")
_OTHER_TYPES = frozenset(
    {"id", "id_token", "refresh", "refresh_token", "offline", "logout", "logout_token", "serialized-id"}
)
# Bind an ID token to the access token or code it was issued with (OpenID Connect Core, 3.1.3.6 and 3.3.2.11).
_ID_TOKEN_CLAIMS = ("at_hash", "c_hash")
# Tokens with none of these need no further checks.
_TYPE_INDICATORS = frozenset((*_CLIENT_CLAIMS, *_TYPE_CLAIMS, *_ID_TOKEN_CLAIMS, "events", "gty", "auth_time"))
_LONGEST_TIER = 64
# A day before the last that datetime can represent, so that a leeway can be added to any time.
_LAST_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def parse_numeric_date(value: object) -> datetime:
    """Parse a NumericDate (RFC 7519, section 2): seconds since 1970, possibly fractional, before the end of year 9999.

    Raises:
        TokenInvalid: it is not a number, or out of range.
    """
    if type(value) is not int and type(value) is not float:  # nor a bool, which is an int
        raise TokenInvalid("the access token has a time that is no number", TokenFault.TIME, "a time is no number")
    if not 0 <= value < _LAST_TIME:
        raise TokenInvalid(
            "the access token has a time out of range",
            TokenFault.TIME,
            "a time is out of range: is it in milliseconds?",
        )
    return datetime.fromtimestamp(value, UTC)


def check_times(issuer: Issuer, claims: Mapping[str, Any], now: datetime) -> tuple[datetime | None, datetime]:
    """Check `iat`, `nbf` and `exp` with the issuer's leeway; return when it was issued, if it says so, and expires.

    Raises:
        TokenExpired: it has expired.
        TokenInvalid: it is not valid yet, or a time cannot be read.
    """
    if "exp" not in claims:
        raise TokenInvalid("the access token has no time of expiry", TokenFault.CLAIM_MISSING, "it has no exp")
    expires_at = parse_numeric_date(claims["exp"])
    issued_at = parse_numeric_date(claims["iat"]) if "iat" in claims else None
    not_before = parse_numeric_date(claims["nbf"]) if "nbf" in claims else None
    latest = now + issuer.leeway
    if (issued_at is not None and issued_at > latest) or (not_before is not None and not_before > latest):
        detail = f"`iat` or `nbf` is ahead of this machine's clock, {now:%Y-%m-%dT%H:%M:%SZ}, by more than the leeway"
        raise TokenInvalid("the access token is not valid yet", TokenFault.TIME, detail)
    if expires_at <= now - issuer.leeway:
        detail = f"at {expires_at:%Y-%m-%dT%H:%M:%SZ}; this machine's clock is at {now:%Y-%m-%dT%H:%M:%SZ}"
        raise TokenExpired("the access token has expired", TokenFault.EXPIRED, detail)
    return issued_at, expires_at


def check_audience(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    """Raise TokenInvalid if the token has an audience and none of ours is in it."""
    claimed = claims.get("aud")
    if claimed in issuer.audiences or (claimed is None and "aud" not in claims):
        return
    if not _is_text_list(claimed) or frozenset(claimed).isdisjoint(issuer.audiences):
        detail = f"`aud` is {show(claimed)}; accepted: {', '.join(issuer.audiences)} (SYNCBEAT_JWT_AUDIENCE)"
        raise TokenInvalid("the access token is not for this service", TokenFault.AUDIENCE, detail)


def check_role(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    """Raise TokenInvalid if the token has a role that is not a user's."""
    if "role" not in claims:
        return
    role = claims["role"]
    text = role if isinstance(role, str) else None
    if text in _API_KEY_ROLES:
        raise TokenInvalid(
            "an API key is not a user's token", TokenFault.ROLE, f"`role` is {text!r}: an API key, and no user's token"
        )
    if issuer.roles is not None and text not in issuer.roles:
        detail = f"`role` is {show(role)}; accepted: {', '.join(sorted(issuer.roles))} (SYNCBEAT_JWT_ROLES)"
        raise TokenInvalid("the access token's role is none of a user", TokenFault.ROLE, detail)


def check_token_type(issuer: Issuer, token_type: str, claims: Mapping[str, Any], latest: datetime) -> None:
    """Check that this is an access token of a user, issued to an accepted client.

    ID, refresh and logout tokens are signed with the same keys (RFC 8725, 3.11 and 3.12). `token_type` is the header's
    `typ` in lower case; `auth_time` may not be later than `latest`.

    Raises:
        TokenInvalid: it is not.
    """
    if token_type not in issuer.types:
        raise _no_access_token(f"the header's `typ` is {show(token_type)}; accepted: {', '.join(sorted(issuer.types))}")
    if issuer.own_sessions:  # we mint access tokens only; the other claims are chosen by the app's backend
        return
    for rule in issuer.rules:
        value = claims.get(rule.claim, "")
        if rule.claim in claims and not (isinstance(value, str) and value in rule.values):
            wanted = " or ".join(sorted(rule.values)) or "absent"
            raise _no_access_token(f"`{rule.claim}` is to be {wanted} in an access token of such an issuer")
    if _TYPE_INDICATORS.isdisjoint(claims) and not issuer.clients:
        return
    if not issuer.accept_id_tokens and _has_other_type(claims):
        raise _no_access_token("its claims are those of an ID, refresh or logout token")
    if "auth_time" in claims and parse_numeric_date(claims["auth_time"]) > latest:
        raise TokenInvalid("the access token is not valid yet", TokenFault.TIME, "`auth_time` is ahead")
    _check_client(issuer, claims)


def _check_client(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    named = [claims[name] for name in _CLIENT_CLAIMS if name in claims]
    # The subject of a client-credentials token is the client itself (RFC 9068, section 5).
    if claims.get("gty") == "client-credentials" or claims.get("sub") in named:
        raise TokenInvalid(
            "the access token is of a client, not of a user", TokenFault.CLIENT, "its subject is the client itself"
        )
    accepted = issuer.client_optional if not named else _is_text_list(named) and issuer.clients.issuperset(named)
    if issuer.clients and not accepted:
        detail = f"issued to {show(named)}; accepted: {', '.join(sorted(issuer.clients))} (SYNCBEAT_JWT_CLIENTS)"
        raise TokenInvalid("the access token was issued to a client that is not let in", TokenFault.CLIENT, detail)


def _no_access_token(detail: str) -> TokenInvalid:
    return TokenInvalid("this is no access token", TokenFault.TYPE, detail)


def claim_at(claim: str, claims: Mapping[str, Any]) -> object:
    """Return a claim's value by its name, or by a path of the names of nested objects (`app_metadata.plan`).

    A claim of exactly that name goes first, since names of claims hold dots too. None if there is none.
    """
    value = claims.get(claim)
    if value is None and "." in claim:
        value = claims
        for name in claim.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    return value


def claimed_tier(claim: str, claims: Mapping[str, Any]) -> str:
    """Return the tier that a token names in `claim`; empty if it names none, or nothing that could be a tier's name."""
    if not claim:
        return ""
    value = claim_at(claim, claims)
    return value if isinstance(value, str) and len(value) <= _LONGEST_TIER else ""


def _has_other_type(claims: Mapping[str, Any]) -> bool:
    if any(name in claims for name in _ID_TOKEN_CLAIMS) or isinstance(claims.get("events"), dict):  # RFC 8417
        return True
    if claims.get("token_use", "access") != "access":
        return True
    types = (claims.get(name) for name in _TYPE_CLAIMS)
    return any(isinstance(one, str) and one.lower() in _OTHER_TYPES for one in types)


def _is_text_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
