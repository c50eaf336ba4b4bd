"""Translates the errors of PostgreSQL and of its driver into errors of the domain, by their SQLSTATE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import asyncpg

from syncbeat_server.errors import (
    AccessDenied,
    DependencyDown,
    DependencyUnfit,
    Overloaded,
    SyncbeatError,
    spread_retry_s,
)

NO_ANSWER = "the database does not answer"
TOO_SLOW = "the database took too long"

# SQLSTATE classes and codes of a fault of the server and not of the statement: PostgreSQL documentation, appendix A.
_DOWN_CLASSES = ("08", "53", "57P", "58")
READ_ONLY = "25006"
# The server ended the session because its transaction waited: this process was stopped, or too busy, for that long.
_LEFT_OPEN = ("25P03", "25P04")
# The login does not exist, may not log in, or its password is wrong. A restore makes logins before anything else.
_LOGIN_REFUSED = ("28000", "28P01")
# Missing database, schema, table, function, column, type, key. Every migrated database has them, and has them
# again after a restore, in the course of which they appear one by one. XX: an object dropped while it was looked up.
_MISSING = ("3D000", "3F000", "42P01", "42883", "42703", "42704", "42P10")
_MISSING_CLASS = "XX"
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"
INSUFFICIENT_PRIVILEGE = "42501"
# The last two are keys: a row found a moment before was deleted meanwhile, or a row not found then was added.
_RETRY_ALONE = ("40001", "40P01", "21000", "23503", "23505")


class StatementRejected(SyncbeatError):
    """PostgreSQL refused a statement: a value, a constraint; `sqlstate` says why, and no driver text is kept."""

    message_text: ClassVar[str] = "a statement was rejected by the database"

    def __init__(self, sqlstate: str, constraint: str) -> None:
        super().__init__(self.message_text)
        self.sqlstate = sqlstate
        self.fault = f"SQLSTATE {sqlstate}"
        self.constraint = constraint


class PermissionLost(StatementRejected, AccessDenied):
    """Row security refused a user's statement: the user may not do this, or no longer since the call was admitted."""

    message_text = "this is not the caller's to do, or not any more"


class PermissionMissing(StatementRejected, DependencyUnfit):
    """The service's own login may not do this; only its operators can fix that."""

    message_text = "the database refuses this to the service"


class SchemaMissing(StatementRejected, DependencyUnfit):
    """Tables or functions of the service are missing: the database is being restored, or was not migrated."""

    message_text = "the database is not as the service needs it"


class LoginRefused(StatementRejected, DependencyUnfit):
    """The server does not let the service's login in; only its operators can fix that."""

    message_text = "the database refuses the login of the service"


class StatementTimeout(DependencyDown):
    """A statement took longer than any may, and was ended: nothing of its transaction is kept."""

    is_transient = False


class Conflict(Overloaded):
    """Two transactions conflicted (deadlock, serialisation): alone, each would have worked."""


class TooManyWait(Overloaded):
    """More calls wait for the database than it serves in good time."""

    def __init__(self, unit: float) -> None:
        """`unit`, drawn from 0 to 1, spreads the return of calls that are refused together."""
        super().__init__("too many calls wait for the database", retry_after_s=spread_retry_s(unit))


class LockTimeout(Overloaded):
    """Another transaction held a row for too long; `place` is the server's text, translated, that names its table."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors into domain errors; the driver's text stays in `__cause__` for the log."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise translate(error) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise DependencyDown(NO_ANSWER) from error


def translate(error: asyncpg.PostgresError) -> SyncbeatError:
    state = error.sqlstate or ""
    if state == _LOCK_NOT_AVAILABLE:
        return LockTimeout("another call holds this row; try again", getattr(error, "context", None) or "")
    if state == _QUERY_CANCELED:
        return StatementTimeout(TOO_SLOW)
    if state == INSUFFICIENT_PRIVILEGE:
        return PermissionMissing(state, "")
    if state == READ_ONLY or state in _LEFT_OPEN or state.startswith(_DOWN_CLASSES):
        return DependencyDown(NO_ANSWER)
    if state in _LOGIN_REFUSED:
        return LoginRefused(state, "")
    if state in _MISSING or state.startswith(_MISSING_CLASS):
        return SchemaMissing(state, "")
    # The latter: a migration changed the result of a prepared statement, which is prepared anew next time.
    if state in _RETRY_ALONE or isinstance(error, asyncpg.InvalidCachedStatementError):
        return Conflict("two calls were in each other's way")
    return StatementRejected(state, getattr(error, "constraint_name", None) or "")


def lacks_grant(error: asyncpg.PostgresError) -> bool:
    # Of a table or function, which all users may use in a complete database, and not of a row. The server's message is
    # translated; the name of its source function is not.
    return getattr(error, "server_source_function", None) == "aclcheck_error"
