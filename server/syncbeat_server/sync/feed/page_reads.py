"""Reads the pages after several cursors with few statements: heads and access first, then the changes up to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.feed.fair_sharing import PageRequest, Pages
from syncbeat_server.sync.feed.resumable_cursors import can_resume, resumable_cursor
from syncbeat_server.sync.model import Cursor, FeedPage, ScopeState
from syncbeat_server.sync.store import changes, member_scopes


async def read_pages(conn: Connection, reads: Sequence[tuple[PageRequest, Cursor]], room: int) -> tuple[Pages, int]:
    """Return the page of each read as far as there is room in octets, and the octets that they take.

    A page is None if there is no such scope or the user is not a member, and deferred if there is no room for it.
    """
    # Heads first, with the access check: a sequence is allocated under the scope's lock, so whatever is at or below a
    # head that was read before is there to be read after; and access may not cover what came later.
    wanted = list(dict.fromkeys((request.app_id, request.user_id, cursor.scope) for request, cursor in reads))
    states = dict(zip(wanted, await member_scopes.scope_states(conn, wanted), strict=True))
    plans = [_plan(request, cursor, states[request.app_id, request.user_id, cursor.scope]) for request, cursor in reads]
    parts = await _read_parts(conn, plans, room)
    plans = [plan and _replanned(read, plan, parts[plan.feed]) for read, plan in zip(reads, plans, strict=True)]
    late = [plan for plan in plans if plan is not None and plan.feed not in parts]
    parts |= await _read_parts(conn, late, room - _octets(parts.values()))
    return [None if plan is None else _page(plan, parts[plan.feed]) for plan in plans], _octets(parts.values())


class _Plan(NamedTuple):
    """Plans the read of one page: the state of its scope, the changes to read, and the cursor it follows."""

    state: ScopeState
    feed: changes.FeedRead
    cursor: Cursor
    reset: bool


def _plan(request: PageRequest, cursor: Cursor, state: ScopeState | None) -> _Plan | None:
    if state is None:
        return None
    reset = not can_resume(cursor, state)
    after = 0 if reset else cursor.sequence or 0
    feed = changes.FeedRead(request.app_id, state.scope, state.epoch, after, state.head, request.limit)
    return _Plan(state, feed, cursor, reset)


def _replanned(read: tuple[PageRequest, Cursor], plan: _Plan, part: changes.FeedPart | None) -> _Plan | None:
    # Tombstones may have been removed since the heads were read. A reader that would miss them starts from the
    # beginning.
    if part is None or part.pruned == plan.state.pruned:
        return plan
    return _plan(*read, plan.state._replace(pruned=part.pruned))


async def _read_parts(
    conn: Connection, plans: Sequence[_Plan | None], octets: int
) -> dict[changes.FeedRead, changes.FeedPart | None]:
    feeds = list(dict.fromkeys(plan.feed for plan in plans if plan is not None))
    if not feeds:
        return {}
    return dict(zip(feeds, await changes.changes_between(conn, feeds, octets), strict=True))


def _octets(parts: Iterable[changes.FeedPart | None]) -> int:
    return sum(part.octets for part in parts if part is not None)


def _page(plan: _Plan, part: changes.FeedPart | None) -> FeedPage:
    if part is None:
        return FeedPage(plan.state, (), plan.cursor, more=True)
    last = part.changes[-1].sequence if part.more else plan.state.head
    return FeedPage(plan.state, part.changes, resumable_cursor(plan.state, last), more=part.more, reset=plan.reset)
