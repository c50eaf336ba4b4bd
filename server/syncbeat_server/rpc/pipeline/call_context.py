"""Describes one call to its servicer method: the caller, the request id, and for whom the caller acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import AccessDenied, FieldReason, FieldViolation, InvalidRequest

_USER = PrincipalKind.USER  # kept, since a look-up in an enum takes as long as a call


class Call(NamedTuple):
    """The context of a servicer method beside its request. `address` is set for callers of public methods only."""

    method: str
    request_id: str
    principal: Principal
    address: str = ""

    @property
    def caller(self) -> str:
        """The caller's name in records of who did something."""
        return self.principal.caller

    def app(self, named: str) -> str:
        """Return the app this call acts for: a USER's own, or the one that a SERVICE or ADMIN names.

        Raises:
            InvalidRequest: the caller serves several apps and named none.
            AccessDenied: the caller may not act for that app.
        """
        principal = self.principal
        if principal.kind is _USER:
            if named not in ("", principal.app_id):
                raise _other_app()
            return principal.app_id
        allowed = principal.apps
        if not named and len(allowed) == 1:
            return next(iter(allowed))
        if not named and DEFAULT_APP not in allowed:
            raise InvalidRequest(
                FieldViolation("app_id", "required: this caller serves several apps", FieldReason.REQUIRED)
            )
        named = named or DEFAULT_APP
        if named not in allowed:
            raise _other_app()
        return named

    def user(self, named: str) -> str:
        """Return the user this call acts for: a USER's own id, or the one that a SERVICE or ADMIN names.

        Raises:
            AccessDenied: a USER named somebody else.
            InvalidRequest: a SERVICE or ADMIN named nobody.
        """
        principal = self.principal
        if principal.kind is _USER:
            if named and named != principal.name:
                raise AccessDenied("a user acts for itself only")
            return principal.name
        if not named:
            raise InvalidRequest(FieldViolation("user_id", "required when a service calls", FieldReason.REQUIRED))
        return named

    @property
    def is_user(self) -> bool:
        """True for an end user, who sees only its own rows."""
        return self.principal.kind is _USER


TrySync = Callable[[Any, Call], bytes | None]
"""Returns the encoded answer to a request without awaiting anything, or None where that cannot be done."""


def _other_app() -> AccessDenied:
    return AccessDenied("this caller may not act for this app")
