"""Reads the change feed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.batching import Batcher
from syncbeat_server.storage.postgres import Connection, Database
from syncbeat_server.sync import store
from syncbeat_server.sync.model import Change, Cursor, FeedPage, ScopeState
from syncbeat_server.sync.resuming import can_resume, reached


class FeedReader:
    """Reads feeds for many callers at once. Access is checked on (user, scope) pairs in the same batch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages: Batcher[tuple[str, str | None, Cursor, int], FeedPage | None] = Batcher(self._read_pages)
        self._members: Batcher[tuple[str, str | None, str], ScopeState | None] = Batcher(self._read_heads)

    async def pages(
        self, app_id: str, user_id: str | None, cursors: Sequence[Cursor], limit: int
    ) -> list[FeedPage | None]:
        """For each cursor its page; None: no such scope, or `user_id` is not a member (None: a service, sees all)."""
        return list(await asyncio.gather(*(self._pages.submit((app_id, user_id, cursor, limit)) for cursor in cursors)))

    async def heads(self, app_id: str, user_id: str | None, scopes: Sequence[str]) -> list[ScopeState | None]:
        """For each scope its state, or None as in `pages`."""
        return list(await asyncio.gather(*(self._members.submit((app_id, user_id, scope)) for scope in scopes)))

    async def member_scopes(self, app_id: str, user_id: str) -> list[ScopeState]:
        """The scopes of a user."""
        async with self._database.connection() as conn:
            return await store.member_scopes(conn, app_id, user_id)

    async def joined_starts(self, app_id: str, user_id: str, scopes: Sequence[str], margin_s: float) -> dict[str, int]:
        """Where a user who joined scopes begins to see them."""
        async with self._database.connection() as conn:
            return await store.joined_starts(conn, app_id, user_id, scopes, margin_s)

    async def _read_heads(self, reads: Sequence[tuple[str, str | None, str]]) -> Sequence[ScopeState | None]:
        distinct = list(dict.fromkeys(reads))
        async with self._database.connection() as conn:
            found = dict(zip(distinct, await store.heads(conn, distinct), strict=True))
        return [found[read] for read in reads]

    async def _read_pages(self, reads: Sequence[tuple[str, str | None, Cursor, int]]) -> Sequence[FeedPage | None]:
        # Heads first, with the right to see them: a sequence is given out under the scope's lock, so whatever is at or
        # below a head that was read before is there to be read after; and what came later, the right may not cover.
        wanted = list(dict.fromkeys((app_id, user_id, cursor.scope) for app_id, user_id, cursor, _ in reads))
        async with self._database.connection() as conn:
            states = dict(zip(wanted, await store.heads(conn, wanted), strict=True))
            plans = [_plan(read, states[read[0], read[1], read[2].scope]) for read in reads]
            parts = await _parts(conn, plans)
            plans = [plan and _caught_up(read, plan, parts[plan.feed]) for read, plan in zip(reads, plans, strict=True)]
            parts |= await _parts(conn, [plan for plan in plans if plan is not None and plan.feed not in parts])
        return [None if plan is None else _page(plan, parts[plan.feed].changes) for plan in plans]


class _Plan(NamedTuple):
    state: ScopeState
    feed: store.FeedRead
    reset: bool


def _plan(read: tuple[str, str | None, Cursor, int], state: ScopeState | None) -> _Plan | None:
    app_id, _, cursor, limit = read
    if state is None:
        return None
    reset = not can_resume(cursor, state)
    after = 0 if reset else cursor.sequence or 0
    return _Plan(state, store.FeedRead(app_id, state.scope, state.epoch, after, state.head, limit), reset)


def _caught_up(read: tuple[str, str | None, Cursor, int], plan: _Plan, part: store.FeedPart) -> _Plan | None:
    # Tombstones may have been removed since the heads were read. Who would miss them starts from the beginning.
    if part.pruned == plan.state.pruned:
        return plan
    return _plan(read, plan.state._replace(pruned=part.pruned))


async def _parts(conn: Connection, plans: Sequence[_Plan | None]) -> dict[store.FeedRead, store.FeedPart]:
    feeds = list(dict.fromkeys(plan.feed for plan in plans if plan is not None))
    if not feeds:
        return {}
    return dict(zip(feeds, await store.changes_between(conn, feeds), strict=True))


def _page(plan: _Plan, changes: tuple[Change, ...]) -> FeedPage:
    more = len(changes) == plan.feed.limit
    last = changes[-1].sequence if more else plan.state.head
    return FeedPage(plan.state, changes, reached(plan.state, last), more=more, reset=plan.reset)
