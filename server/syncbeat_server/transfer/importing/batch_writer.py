"""Writes the targets of a batch in the caller's transaction, by the code that live writers go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from syncbeat_server.auth.accounts import user_access
from syncbeat_server.directory.additions import add_absent_device, add_absent_members, add_absent_preferences
from syncbeat_server.directory.model import Member, Registration
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.feed.writer import Append, append, lock_in_order, lock_scope
from syncbeat_server.sync.model import NewChange, WriteOutcome
from syncbeat_server.sync.policy import Prior
from syncbeat_server.transfer.importing.batches import Item
from syncbeat_server.transfer.importing.report import ImportReport
from syncbeat_server.transfer.model import Misfit, MisfitReason, UserPreferences


async def write_items(
    conn: Connection, app_id: str, items: Sequence[Item], prior: Callable[[str], Prior]
) -> ImportReport:
    """Write targets and return what became of them. Nobody is woken, and nothing is pushed.

    Of a user who is deleted nothing is written but values: what an erasure took does not come back by an old export.
    Users are locked before scopes, and those before members and devices, in the order that all writers keep (ADR 66).

    Raises:
        InvalidRequest: PostgreSQL cannot store a value (the transaction is over then).
        RateLimited: a scope would have too many members, or a user too many scopes or devices.
        Overloaded, DependencyDown: the database does not answer, or others are in the way.
    """
    report = ImportReport()
    items = await _without_deleted_users(conn, app_id, items, report)
    changes = [item.target for item in items if isinstance(item.target, NewChange)]
    members = [item.target for item in items if isinstance(item.target, Member)]
    if members:
        names = {change.scope for change in changes} | {member.scope for member in members}
        await lock_in_order(conn, app_id, names)
    await _write_changes(conn, app_id, changes, prior, report)
    if members:
        report.members = await add_absent_members(conn, lock_scope, app_id, members)
        report.present += len(members) - report.members
    wanted = {item.target.user_id: item.target for item in items if isinstance(item.target, UserPreferences)}
    for user_id, one in sorted(wanted.items()):
        added = await add_absent_preferences(conn, app_id, user_id, one.preferences)
        report.preferences += added
        report.present += not added
    registrations = [item.target for item in items if isinstance(item.target, Registration)]
    for device in sorted(registrations, key=lambda one: (one.user_id, one.device_id)):
        added = await add_absent_device(conn, device)
        report.devices += added
        report.present += not added
    return report


async def _without_deleted_users(
    conn: Connection, app_id: str, items: Sequence[Item], report: ImportReport
) -> Sequence[Item]:
    """Lock the users that targets name, and return the targets without those of deleted users, which are counted."""
    named = {one.target.user_id for one in items if not isinstance(one.target, NewChange)}
    deleted = await user_access.lock_deleted(conn, app_id, sorted(named)) if named else set()
    if not deleted:
        return items
    kept = []
    for item in items:
        if isinstance(item.target, NewChange) or item.target.user_id not in deleted:
            kept.append(item)
        else:
            report.add_misfits([Misfit(item.pattern, item.path, MisfitReason.REFUSED_DELETED)])
    return kept


async def _write_changes(
    conn: Connection,
    app_id: str,
    changes: Sequence[NewChange],
    prior: Callable[[str], Prior],
    report: ImportReport,
) -> None:
    if not changes:
        return
    (result,) = await append(conn, [Append(app_id, tuple(changes))], prior, create_scopes=True)
    if isinstance(result, SyncbeatError):
        raise result
    for outcome in result.outcomes:
        if outcome is WriteOutcome.UNCHANGED:
            report.unchanged += 1
        elif outcome is WriteOutcome.SUPERSEDED:
            report.superseded += 1
        else:
            report.written += 1
