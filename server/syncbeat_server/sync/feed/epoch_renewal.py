"""Begins new epochs after the database was restored, so that nobody resumes from changes that the restore undid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.errors import Overloaded
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.restore_detection import begin_feed_generation
from syncbeat_server.sync.model import Extent, ScopeKey
from syncbeat_server.sync.store import epochs


@dataclass(frozen=True)
class RenewalRule:
    """Bounds of the transactions that renew epochs."""

    page: int = 1_000
    """Scopes of one transaction: some 80 ms, for which publishers to them wait."""
    rows: int = 5_000
    """Changes looked at in one transaction, of which all may have to be written: up to 0.2 s."""
    lock_ms: int = 250
    """Publishers to the scopes of a page that are locked already wait no longer than that."""
    tries: int = 60
    pause_s: float = 0.25
    """With `lock_ms` 30 s in all, and no transaction of the service takes more than 10."""


_RULE = RenewalRule()


async def extent(database: Database, app_id: str | None) -> Extent:
    """Return the number of scopes to renew. Raises DependencyDown."""
    async with database.connection() as conn:
        return await epochs.extent(conn, app_id)


async def renew_epochs(
    database: Database,
    clock: Clock,
    app_id: str | None,
    report_progress: Callable[[int], None] = lambda count: None,
    rule: RenewalRule = _RULE,
) -> tuple[int, int]:
    """Begin a new epoch in every scope, of one app or of all; return their number and the new feed generation.

    Everything that carries an epoch (cursors of devices, of streams, of pushes) is compared with its scope's when it is
    used, so nothing else has to be rewritten. Each page is a transaction: a run that was interrupted leaves whole
    pages, and the next begins with all again. `report_progress` is called with the scopes done after each page.

    Raises:
        DependencyDown: the database does not answer.
        Overloaded: scopes or changes stayed locked by another session.
    """
    # First: tokens from before resume nothing from here on, and running processes notice the new generation.
    generation = await _begin_generation(database)
    if await _forget_foreign_transactions(database, clock, app_id, rule):
        # A list from the start that ran meanwhile may have taken such changes for news that comes later.
        generation = await _begin_generation(database)
    after: ScopeKey = ("", "")
    done = 0
    while keys := await _renew_page(database, clock, app_id, after, rule):
        after = keys[-1]
        done += len(keys)
        report_progress(done)
    return done, generation


async def _begin_generation(database: Database) -> int:
    async with database.transaction() as conn:
        await epochs.forget_pruned_tombstones(conn)
        return await begin_feed_generation(conn)


async def _forget_foreign_transactions(database: Database, clock: Clock, app_id: str | None, rule: RenewalRule) -> int:
    """Reset the transaction numbers of changes from another cluster; return the number of changes.

    Their scopes are not locked.
    """
    async with database.connection() as conn:
        begun = await epochs.next_transaction(conn)
    forgotten = 0
    for _ in range(rule.tries):
        async with database.connection() as conn:
            apps = await epochs.foreign_apps(conn, begun, app_id)
        if not apps:
            return forgotten
        before = forgotten
        for app in apps:
            after: ScopeKey | None = ("", "")
            while after is not None:
                async with database.connection() as conn:
                    count, after = await epochs.forget_foreign_transactions(conn, begun, app, after, rule.rows)
                forgotten += count
        if forgotten == before:
            await clock.sleep(rule.pause_s)
    raise Overloaded("changes stayed locked by somebody else")


async def _renew_page(
    database: Database, clock: Clock, app_id: str | None, after: ScopeKey, rule: RenewalRule
) -> list[ScopeKey]:
    for tries_left in reversed(range(rule.tries)):
        try:
            async with database.transaction() as conn:
                keys = await epochs.lock_page(conn, app_id, after, rule.page, rule.lock_ms)
                await epochs.renew(conn, keys)
                return keys
        except Overloaded:
            if not tries_left:
                raise
            await clock.sleep(rule.pause_s)
    return []
