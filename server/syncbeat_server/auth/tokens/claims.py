"""Checks the claims of a foreign access token beside its subject: its audience, and that it is one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from syncbeat_server.auth.model import Issuer
from syncbeat_server.errors import TokenInvalid

# Supabase signs its API keys with the users' secret and ships the first in every app: they are nobody.
_NOBODY = frozenset({"anon", "service_role"})
_CLIENT_CLAIMS = ("azp", "client_id")
_KIND_CLAIMS = ("typ", "type", "token_type", "token_use")
_OTHER_KINDS = frozenset(
    {"id", "id_token", "refresh", "refresh_token", "offline", "logout", "logout_token", "serialized-id"}
)
# OpenID Connect Core, 3.1.3.6 and 3.3.2.11: an ID token is tied by these to what it was issued with.
_OF_ID_TOKENS = ("at_hash", "c_hash")
_TELLING = frozenset((*_CLIENT_CLAIMS, *_KIND_CLAIMS, *_OF_ID_TOKENS, "events", "gty", "auth_time"))
# The last day of datetime's last year is left out, so that a leeway can be added to any time.
_LAST_TIME = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


def time_of(value: object) -> datetime:
    """A NumericDate (RFC 7519, section 2): seconds since 1970, also with a fraction, before the year 9999 is over.

    Raises:
        TokenInvalid: it is no number, or out of that range.
    """
    if type(value) is not int and type(value) is not float:  # nor a bool, which is an int
        raise TokenInvalid("the access token has a time that is no number")
    if not 0 <= value < _LAST_TIME:
        raise TokenInvalid("the access token has a time out of range")
    return datetime.fromtimestamp(value, UTC)


def check_audience(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    """Raise TokenInvalid if the token says whom it is for, and we are not among them."""
    claimed = claims.get("aud")
    if claimed in issuer.audiences or (claimed is None and "aud" not in claims):
        return
    if not _is_text_list(claimed) or frozenset(claimed).isdisjoint(issuer.audiences):
        raise TokenInvalid("the access token is not for this service")


def check_role(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    """Raise TokenInvalid if the token's role is none of a user."""
    if "role" not in claims:
        return
    role = claims["role"]
    text = role if isinstance(role, str) else None
    if text in _NOBODY:
        raise TokenInvalid("an API key is not a user's token")
    if issuer.roles is not None and text not in issuer.roles:
        raise TokenInvalid("the access token's role is none of a user")


def check_kind(issuer: Issuer, kind: str, claims: Mapping[str, Any], latest: datetime) -> None:
    """Check that this is an access token of a user, issued to a client that is let in.

    ID, refresh and logout tokens are signed with the same keys (RFC 8725, 3.11 and 3.12). `kind` is what the header
    calls it, in lower case; nothing may have happened after `latest`.

    Raises:
        TokenInvalid: it is none.
    """
    if kind not in issuer.types:
        raise TokenInvalid("this is no access token")
    if issuer.own:  # what we mint is of one kind; other claims are the backend's
        return
    for rule in issuer.rules:
        value = claims.get(rule.claim, "")
        if rule.claim in claims and not (isinstance(value, str) and value in rule.values):
            raise TokenInvalid("this is no access token")
    if _TELLING.isdisjoint(claims) and not issuer.clients:
        return
    if not issuer.id_tokens and _is_of_another_kind(claims):
        raise TokenInvalid("this is no access token")
    if "auth_time" in claims and time_of(claims["auth_time"]) > latest:
        raise TokenInvalid("the access token is not valid yet")
    _check_client(issuer, claims)


def _check_client(issuer: Issuer, claims: Mapping[str, Any]) -> None:
    named = [claims[name] for name in _CLIENT_CLAIMS if name in claims]
    # A token that a client was given for itself has the client as its subject (RFC 9068, section 5).
    if claims.get("gty") == "client-credentials" or claims.get("sub") in named:
        raise TokenInvalid("the access token is of a client, not of a user")
    let_in = issuer.client_optional if not named else _is_text_list(named) and issuer.clients.issuperset(named)
    if issuer.clients and not let_in:
        raise TokenInvalid("the access token was issued to a client that is not let in")


def _is_of_another_kind(claims: Mapping[str, Any]) -> bool:
    if any(name in claims for name in _OF_ID_TOKENS) or isinstance(claims.get("events"), dict):  # RFC 8417
        return True
    if claims.get("token_use", "access") != "access":
        return True
    kinds = (claims.get(name) for name in _KIND_CLAIMS)
    return any(isinstance(kind, str) and kind.lower() in _OTHER_KINDS for kind in kinds)


def _is_text_list(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
