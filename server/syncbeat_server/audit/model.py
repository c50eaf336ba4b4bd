"""Values of the audit log: actions, entries, and what a list of them is filtered by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class AuditAction(StrEnum):
    """A sensitive thing that was done."""

    SESSION_REVOKED = "SESSION_REVOKED"
    USER_REVOKED = "USER_REVOKED"
    REFRESH_TOKEN_REUSED = "REFRESH_TOKEN_REUSED"  # noqa: S105  # no password
    USER_DISABLED = "USER_DISABLED"
    USER_ENABLED = "USER_ENABLED"
    USER_DELETED = "USER_DELETED"
    LINK_TOKEN_ISSUED = "LINK_TOKEN_ISSUED"  # noqa: S105  # no password
    IDENTITY_LINKED = "IDENTITY_LINKED"
    USERS_IMPORTED = "USERS_IMPORTED"
    TIER_SET = "TIER_SET"
    TOKEN_MOVED = "TOKEN_MOVED"  # noqa: S105  # no password
    DELIVERIES_REDRIVEN = "DELIVERIES_REDRIVEN"
    EVENT_RETRIED = "EVENT_RETRIED"
    APP_ADDED = "APP_ADDED"
    APP_CHANGED = "APP_CHANGED"
    APP_REMOVED = "APP_REMOVED"
    APP_ERASED = "APP_ERASED"
    EPOCHS_RENEWED = "EPOCHS_RENEWED"
    FIGURE_PUT = "FIGURE_PUT"


DEPLOYMENT = ""
"""The app of entries that concern all apps."""

Detail = str | int | bool
Details = Mapping[str, Detail]


def user_subject(user_id: str) -> str:
    """Return the subject of an entry about a user."""
    return f"user:{user_id}"


def app_subject(app_id: str) -> str:
    """Return the subject of an entry about an app; of all apps for `DEPLOYMENT`."""
    return f"app:{app_id}" if app_id else "deployment"


@dataclass(frozen=True, slots=True)
class NewEntry:
    """Holds the columns of an entry to insert; the database adds its id and time. `details` is JSON."""

    app_id: str
    action: AuditAction
    actor: str
    address: str
    subject: str
    request_id: str
    details: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Holds an entry as it is kept. `action` is text: a later version of the server may have written it."""

    app_id: str
    entry_id: str
    occurred_at: datetime
    actor: str
    address: str
    action: str
    subject: str
    request_id: str
    details: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Selects entries; an empty field selects all. Of times `since` is included and `until` is not."""

    actor: str = ""
    action: str = ""
    subject: str = ""
    since: datetime | None = None
    until: datetime | None = None


class EntryPlace(NamedTuple):
    """Names the place in a list, newest first, after an entry."""

    occurred_at: datetime
    entry_id: str


class SeenApp(NamedTuple):
    """Tells what the log says of an app's configuration last: the action, and the digest of its settings."""

    action: str
    settings: str
