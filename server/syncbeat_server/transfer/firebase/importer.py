"""Imports the users of an export in batches, each of which commits or not as a whole: run again, it changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import IO

from syncbeat_server.auth.identities.imported_users import WrittenUsers
from syncbeat_server.events.identities.user_imports import UserBatch, cancel_deliveries, import_batch
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.transfer.firebase.auth_export import FirebaseUser, UserMisfit, read_users

BATCH = 500
"""Users of a transaction: some tens of milliseconds, for which first sign-ins of the same users wait."""


@dataclass(frozen=True)
class ImportPlan:
    """Says what to import where.

    Attributes:
        issuer: The issuer whose subjects the users are.
        home: The issuer whose subjects users without identities are; empty: none.
        is_user_id: Tells if an id is one that the issuer's tokens may name.
        keep_emails: Digests of verified e-mail addresses are kept.
        dry_run: Nothing is written.
    """

    app_id: str
    issuer: str
    home: str
    is_user_id: Callable[[str], bool]
    keep_emails: bool = False
    dry_run: bool = False


@dataclass
class UserReport:
    """Counts what an import did, or would do.

    Attributes:
        read: Users of the export.
        users: Those who were unknown here.
        identities: Identities written.
        emails: Identities whose e-mail address is another now, or is not kept any more.
        disabled: Users who were disabled by the export.
        blocked: Users disabled or deleted here before.
        verified: Users with a verified e-mail address.
        misfits: Users left out, by reason; `examples` has the place of the first of each.
        providers: Users by way to sign in.
    """

    read: int = 0
    users: int = 0
    identities: int = 0
    emails: int = 0
    disabled: int = 0
    blocked: int = 0
    verified: int = 0
    misfits: Counter[UserMisfit] = field(default_factory=Counter)
    examples: dict[UserMisfit, int] = field(default_factory=dict)
    providers: Counter[str] = field(default_factory=Counter)

    def add_misfit(self, reason: UserMisfit, place: int) -> None:
        """Count the user at this place of the export, which is left out."""
        self.misfits[reason] += 1
        self.examples.setdefault(reason, place)


class _RolledBack(Exception):  # no error: it ends the transaction of a dry run
    """Carries what a dry run would have written out of its transaction."""

    def __init__(self, done: tuple[WrittenUsers, list[str]]) -> None:
        super().__init__("a dry run writes nothing")
        self.done = done


async def import_users(
    database: Database,
    plan: ImportPlan,
    export: IO[bytes],
    on_disabled: Callable[[str], None],
    on_batch: Callable[[UserReport], None],
) -> UserReport:
    """Import an export. `on_disabled(user)` is called after the commit, `on_batch(report)` after each batch.

    Raises:
        ConfigurationError: the file is no export. What was read before is imported.
        DependencyDown: the database does not answer. Run it again.
    """
    report = UserReport()
    users = _users(plan, export, report)
    while batch := list(islice(users, BATCH)):
        for user_id in await _write(database, plan, batch, report):
            on_disabled(user_id)
            async with database.transaction() as conn:
                await cancel_deliveries(conn, plan.app_id, user_id)
        on_batch(report)
    return report


def _users(plan: ImportPlan, export: IO[bytes], report: UserReport) -> Iterator[tuple[int, FirebaseUser]]:
    """Yield the users that can be imported, each with its place in the export."""
    for found in read_users(export):
        report.read += 1
        if isinstance(found, UserMisfit):
            report.add_misfit(found, report.read)
        elif not plan.is_user_id(found.user_id):
            report.add_misfit(UserMisfit.MALFORMED_ID, report.read)
        else:
            yield report.read, found


async def _in_transaction(database: Database, batch: UserBatch, *, dry_run: bool) -> tuple[WrittenUsers, list[str]]:
    try:
        async with database.transaction() as conn:
            done = await import_batch(conn, batch)
            if dry_run:
                raise _RolledBack(done)
    except _RolledBack as ended:
        return ended.done
    return done


async def _write(
    database: Database, plan: ImportPlan, users: Sequence[tuple[int, FirebaseUser]], report: UserReport
) -> list[str]:
    """Write a batch, count it, and return who was disabled. Of a user who is in it twice the last one counts."""
    by_id = {one.user_id: one for _, one in users}
    places = {one.user_id: place for place, one in users}
    emails = {one.user_id: one.verified_email if plan.keep_emails else "" for one in by_id.values()}
    disabled_there = frozenset(name for name, one in by_id.items() if one.disabled)
    batch = UserBatch(plan.app_id, plan.issuer, plan.home, emails, disabled_there)
    written, disabled = await _in_transaction(database, batch, dry_run=plan.dry_run)
    for name in sorted(written.taken, key=places.__getitem__):
        report.add_misfit(UserMisfit.TAKEN, places[name])
        del by_id[name]
    report.users += written.users
    report.identities += written.identities
    report.emails += written.emails
    report.disabled += len(disabled)
    report.blocked += len(written.blocked)
    report.verified += sum(bool(one.verified_email) for one in by_id.values())
    for one in by_id.values():
        report.providers.update(one.providers)
    return [] if plan.dry_run else disabled
