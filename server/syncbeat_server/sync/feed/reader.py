"""Reads the change feed.

What is read at once is bounded in octets, whoever asks for it: so an answer fits its receiver, a stream whose client
does not read holds little, and no caller waits long for what others are sent.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.sync.feed.resume import can_resume, reached
from syncbeat_server.sync.model import Cursor, FeedPage, ScopeState
from syncbeat_server.sync.store import changes

PAGE_OCTETS = 1 << 20
"""How much the pages of one call, and of one batch of calls, hold together; one change may be larger. gRPC's receivers
take 4 MiB unless they are told otherwise."""
_LARGE_OCTETS = 64 << 10  # more than that takes long enough to put on the wire to be done one after the other
_MOST_SERVED = 10_000
_READS_AT_ONCE = 256
_HEADS_AT_ONCE = 2_000
# Of a batch of reads; after that each runs alone, so that one which is slow is so for its own caller.
_PATIENCE_S = 1.0


_Caller = tuple[str, str | None]


class _Ask(NamedTuple):
    """The pages that one caller wants; `passed_over`: how often there was no room for any of them."""

    app_id: str
    user_id: str | None
    cursors: tuple[Cursor, ...]
    limit: int
    passed_over: int = 0

    @property
    def caller(self) -> _Caller:
        """Whose turn it takes."""
        return self.app_id, self.user_id


_Pages = list[FeedPage | None]
_Members = tuple[str, str | None, tuple[str, ...]]


class FeedReader:
    """Reads feeds for many callers at once. Access is checked on (user, scope) pairs in the same batch."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._served: OrderedDict[_Caller, int] = OrderedDict()
        self._turns = itertools.count(1)
        self._one_large = asyncio.Lock()
        self._pages: Batcher[_Ask, _Pages | None] = Batcher(self._read_pages, patience_s=_PATIENCE_S)
        self._members: Batcher[_Members, list[ScopeState | None]] = Batcher(self._read_heads, patience_s=_PATIENCE_S)

    async def pages(self, app_id: str, user_id: str | None, cursors: Sequence[Cursor], limit: int) -> _Pages:
        """For each cursor its page; None: no such scope, or `user_id` is not a member (None: a service, sees all).

        All of them hold `PAGE_OCTETS` together, or one change. Those there was no room for are empty and say `more`.
        """
        if not cursors:
            return []
        passed_over = 0
        while True:
            pages = await self._pages.submit(_Ask(app_id, user_id, tuple(cursors), limit, passed_over))
            if pages is None:
                passed_over += 1
                continue
            if _octets_of(pages) > _LARGE_OCTETS:
                # Those of a batch are not put on the wire all in one turn of the loop: others wait for that.
                async with self._one_large:
                    await asyncio.sleep(0)
            return pages

    async def heads(self, app_id: str, user_id: str | None, scopes: Sequence[str]) -> list[ScopeState | None]:
        """For each scope its state, or None as in `pages`."""
        return await self._members.submit((app_id, user_id, tuple(scopes))) if scopes else []

    async def member_scopes(self, app_id: str, user_id: str) -> tuple[list[ScopeState], bool]:
        """The scopes of a user that changed last, and whether there are more."""
        async with self._database.connection() as conn:
            return await changes.member_scopes(conn, app_id, user_id)

    async def joined_starts(self, app_id: str, user_id: str, scopes: Sequence[str], margin_s: float) -> dict[str, int]:
        """Where a user who joined scopes begins to see them."""
        async with self._database.connection() as conn:
            return await changes.joined_starts(conn, app_id, user_id, scopes, margin_s)

    async def _read_heads(self, asks: Sequence[_Members]) -> Sequence[list[ScopeState | None]]:
        distinct = list(dict.fromkeys((app_id, user_id, scope) for app_id, user_id, scopes in asks for scope in scopes))
        found: dict[tuple[str, str | None, str], ScopeState | None] = {}
        async with self._database.connection() as conn:
            for start in range(0, len(distinct), _HEADS_AT_ONCE):
                reads = distinct[start : start + _HEADS_AT_ONCE]
                found |= zip(reads, await changes.heads(conn, reads), strict=True)
        return [[found[app_id, user_id, scope] for scope in scopes] for app_id, user_id, scopes in asks]

    async def _read_pages(self, asks: Sequence[_Ask]) -> Sequence[_Pages | None]:
        order = _in_turns(asks, self._served)
        answers: list[_Pages | None] = [None] * len(asks)
        handed: Counter[_Caller] = Counter()
        room = PAGE_OCTETS
        async with self._database.connection() as conn:
            for places in _slices(order, asks):
                if room <= 0:
                    break
                reads = [(ask, cursor) for ask in (asks[place] for place in places) for cursor in ask.cursors]
                found, octets = await _read(conn, reads, room)
                room -= octets
                pages = iter(found)
                for place in places:
                    of_ask = [next(pages) for _ in asks[place].cursors]
                    if not all(page is not None and page.is_unread for page in of_ask):
                        answers[place] = _within_share(asks[place].caller, of_ask, handed)
        if None in answers:
            self._note_served(asks, answers)
        return answers

    def _note_served(self, asks: Sequence[_Ask], answers: Sequence[_Pages | None]) -> None:
        turn = next(self._turns)
        for caller in {ask.caller for ask, answer in zip(asks, answers, strict=True) if answer is not None}:
            self._served[caller] = turn
            self._served.move_to_end(caller)
        while len(self._served) > _MOST_SERVED:
            self._served.popitem(last=False)


def _in_turns(asks: Sequence[_Ask], served: Mapping[_Caller, int]) -> list[int]:
    """The places of asks in the order in which there is room for them: the oldest one of each caller, then their second
    ones, and so on. Of callers those go first who were served longest ago, of as long those whose ask is older.

    So a caller with a hundred asks takes turns with who has one; and nobody is passed over for ever.
    """
    of_callers: defaultdict[_Caller, list[int]] = defaultdict(list)
    for place in sorted(range(len(asks)), key=lambda place: -asks[place].passed_over):
        of_callers[asks[place].caller].append(place)
    callers = sorted(of_callers, key=lambda caller: served.get(caller, 0))
    turns = itertools.zip_longest(*(of_callers[caller] for caller in callers))
    return [place for turn in turns for place in turn if place is not None]


def _within_share(caller: _Caller, pages: _Pages, handed: Counter[_Caller]) -> _Pages | None:
    """The pages, if all that this batch hands to their caller fits in a page; a first answer always does. Answers of
    the same feed are read once, but each goes over the wire."""
    octets = _octets_of(pages)
    if handed[caller] and handed[caller] + octets > PAGE_OCTETS:
        return None
    handed[caller] += octets
    return pages


def _octets_of(pages: _Pages) -> int:
    """About what the values of pages take on the wire."""
    return sum(len(change.value_json) for page in pages if page is not None for change in page.changes)


def _slices(order: Sequence[int], asks: Sequence[_Ask]) -> Iterator[list[int]]:
    """The places of asks, as many at a time as may be read at once, and one at least."""
    slice_: list[int] = []
    reads = 0
    for place in order:
        count = len(asks[place].cursors)
        if slice_ and reads + count > _READS_AT_ONCE:
            yield slice_
            slice_, reads = [], 0
        slice_.append(place)
        reads += count
    yield slice_


async def _read(conn: Connection, reads: Sequence[tuple[_Ask, Cursor]], room: int) -> tuple[_Pages, int]:
    """The page of each read as far as there is room, and what they take."""
    # Heads first, with the right to see them: a sequence is given out under the scope's lock, so whatever is at or
    # below a head that was read before is there to be read after; and what came later, the right may not cover.
    wanted = list(dict.fromkeys((ask.app_id, ask.user_id, cursor.scope) for ask, cursor in reads))
    states = dict(zip(wanted, await changes.heads(conn, wanted), strict=True))
    plans = [_plan(ask, cursor, states[ask.app_id, ask.user_id, cursor.scope]) for ask, cursor in reads]
    parts = await _parts(conn, plans, room)
    plans = [plan and _caught_up(read, plan, parts[plan.feed]) for read, plan in zip(reads, plans, strict=True)]
    late = [plan for plan in plans if plan is not None and plan.feed not in parts]
    parts |= await _parts(conn, late, room - _octets(parts.values()))
    return [None if plan is None else _page(plan, parts[plan.feed]) for plan in plans], _octets(parts.values())


class _Plan(NamedTuple):
    state: ScopeState
    feed: changes.FeedRead
    cursor: Cursor
    reset: bool


def _plan(ask: _Ask, cursor: Cursor, state: ScopeState | None) -> _Plan | None:
    if state is None:
        return None
    reset = not can_resume(cursor, state)
    after = 0 if reset else cursor.sequence or 0
    feed = changes.FeedRead(ask.app_id, state.scope, state.epoch, after, state.head, ask.limit)
    return _Plan(state, feed, cursor, reset)


def _caught_up(read: tuple[_Ask, Cursor], plan: _Plan, part: changes.FeedPart | None) -> _Plan | None:
    # Tombstones may have been removed since the heads were read. Who would miss them starts from the beginning.
    if part is None or part.pruned == plan.state.pruned:
        return plan
    return _plan(*read, plan.state._replace(pruned=part.pruned))


async def _parts(
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
    return FeedPage(plan.state, part.changes, reached(plan.state, last), more=part.more, reset=plan.reset)
