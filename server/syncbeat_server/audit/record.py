"""Writes entries into the audit log, in the transactions of the features whose actions they tell of."""

from __future__ import annotations

from syncbeat_server.audit.model import AuditAction, Detail, NewEntry, user_subject
from syncbeat_server.audit.origin import origin
from syncbeat_server.audit.policy.details import details_json
from syncbeat_server.audit.store import entries
from syncbeat_server.storage.postgres.database import Connection


async def record(conn: Connection, app_id: str, action: AuditAction, subject: str, **details: Detail) -> None:
    """Record an action of the present origin: it commits with the caller's transaction, or not at all.

    No token and no secret belongs into `details`. Raises as any statement of that transaction.
    """
    acting = origin.get()
    entry = NewEntry(
        app_id=app_id,
        action=action,
        actor=acting.actor,
        address=acting.address(),
        subject=subject,
        request_id=acting.request_id,
        details=details_json({**details, **acting.cause}),
    )
    await entries.insert_entry(conn, entry)


async def record_grant(conn: Connection, app_id: str, user_id: str, tier: str) -> None:
    """Record that a user was granted a tier; an empty one takes the grant back. Raises as `record`."""
    await record(conn, app_id, AuditAction.TIER_SET, user_subject(user_id), tier=tier)
