"""Imports users of another service across all features, a batch in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from syncbeat_server.audit.model import AuditAction, app_subject, user_subject
from syncbeat_server.audit.record import record
from syncbeat_server.auth.accounts import user_access as auth
from syncbeat_server.auth.identities.imported_users import WrittenUsers, write_users
from syncbeat_server.push import accept as push
from syncbeat_server.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class UserBatch:
    """Users of one issuer of an app: their verified e-mail addresses, or empty texts, and who of them is disabled.

    `home` is the issuer whose subjects users without identities are; empty: none.
    """

    app_id: str
    issuer: str
    home: str
    emails: Mapping[str, str]
    disabled: frozenset[str]


async def import_batch(conn: Connection, batch: UserBatch) -> tuple[WrittenUsers, list[str]]:
    """Write a batch, and disable who is disabled. Nobody is enabled: who was disabled or deleted here stays so.

    Call `cancel_deliveries` for who was disabled afterwards, each in a transaction of its own: deliveries are locked in
    one order, which those of several users together would not be. They are not sent meanwhile.

    Returns:
        What was written, and who was disabled.
    """
    app_id = batch.app_id
    written = await write_users(conn, app_id, batch.issuer, batch.home, batch.emails)
    disabled = sorted(batch.disabled - written.taken - written.blocked)
    for user_id in disabled:
        await auth.disable(conn, app_id, user_id)
        await record(conn, app_id, AuditAction.USER_DISABLED, user_subject(user_id), issuer=batch.issuer)
    if written.users or written.identities or written.emails or disabled:
        counts = {"users": written.users, "identities": written.identities, "disabled": len(disabled)}
        await record(conn, app_id, AuditAction.USERS_IMPORTED, app_subject(app_id), issuer=batch.issuer, **counts)
    return written, disabled


async def cancel_deliveries(conn: Connection, app_id: str, user_id: str) -> None:
    """Cancel the deliveries to the devices of a user who was disabled."""
    await push.cancel_user(conn, app_id, user_id)
