"""Reads the change feeds of many callers in batches.

The octets of one read are bounded for every caller: so an answer fits its receiver, a stream whose client does not
read holds little, and no caller waits long for what others are sent.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.fair_sharing import (
    PAGE_OCTETS,
    READS_PER_STATEMENT,
    Caller,
    PageRequest,
    Pages,
    octets_of,
    round_robin,
    statements,
    within_share,
)
from syncbeat_server.sync.feed.page_reads import read_pages
from syncbeat_server.sync.model import Cursor, ScopeState, UserKey
from syncbeat_server.sync.store import member_scopes

_LARGE_OCTETS = 64 << 10  # larger answers take long enough to serialize to be sent one after the other
_MAX_SERVED_CALLERS = 10_000
# After that each request of a batch runs alone, so that a slow one delays its own caller only.
_PATIENT = BatchRule(patience_s=1.0, abandons=True)

_HeadsRequest = tuple[str, str | None, tuple[str, ...]]


@dataclass(frozen=True)
class ReadLimits:
    """Numbers of feeds, and of users, that one statement reads."""

    pages_per_statement: int = READS_PER_STATEMENT
    heads_per_statement: int = 2_000
    users_per_statement: int = 32
    """Users whose scopes one statement reads, of up to 2,000 each."""


_LIMITS = ReadLimits()


class FeedReader:
    """Reads feeds for many callers at once. Access is checked on (user, scope) pairs in the same batch."""

    def __init__(self, database: Database, limits: ReadLimits = _LIMITS) -> None:
        self._limits = limits
        self._database = database
        self._last_served: OrderedDict[Caller, int] = OrderedDict()
        self._turns = itertools.count(1)
        self._large_answers = asyncio.Lock()
        self._pages: Batcher[PageRequest, Pages | None] = Batcher(self._read_pages, _PATIENT)
        self._heads: Batcher[_HeadsRequest, list[ScopeState | None]] = Batcher(self._read_heads, _PATIENT)
        self._members: Batcher[UserKey, tuple[list[ScopeState], bool]] = Batcher(
            self._read_member_scopes, replace(_PATIENT, max_batch=limits.users_per_statement)
        )

    async def pages(self, app_id: str, user_id: str | None, cursors: Sequence[Cursor], limit: int) -> Pages:
        """Return the page after each cursor, of at most `limit` changes; `user_id` None is a service, which sees all.

        A page is None if there is no such scope or the user is not a member. All of them hold `PAGE_OCTETS` together,
        or one change. Those there was no room for are empty and say `more`.
        """
        if not cursors:
            return []
        deferrals = 0
        while True:
            pages = await self._pages.submit(PageRequest(app_id, user_id, tuple(cursors), limit, deferrals))
            if pages is None:
                deferrals += 1
                continue
            if octets_of(pages) > _LARGE_OCTETS:
                # The answers of a batch are not serialized all in one turn of the event loop: others wait for that.
                async with self._large_answers:
                    await asyncio.sleep(0)
            return pages

    async def shared_pages(
        self, cursors: Sequence[tuple[str, Cursor]], readers: Sequence[tuple[str, str, str]], limit: int
    ) -> tuple[Pages, list[bool]]:
        """Return the page after each (app, cursor), and if each (app, user, scope) may read its scope.

        Access is read after the pages, so that it covers them. Together they hold `PAGE_OCTETS`, or one change.
        """
        reads = [(PageRequest(app_id, None, (cursor,), limit), cursor) for app_id, cursor in cursors]
        async with self._database.connection() as conn:
            pages, _ = await read_pages(conn, reads, PAGE_OCTETS)
            return pages, await member_scopes.are_members(conn, readers)

    async def heads(self, app_id: str, user_id: str | None, scopes: Sequence[str]) -> list[ScopeState | None]:
        """Return the state of each scope, or None as in `pages`."""
        return await self._heads.submit((app_id, user_id, tuple(scopes))) if scopes else []

    async def member_scopes(self, app_id: str, user_id: str) -> tuple[list[ScopeState], bool]:
        """Return the scopes of a user that changed last, and True if there are more."""
        return await self._members.submit((app_id, user_id))

    async def join_sequences(self, app_id: str, user_id: str, scopes: Sequence[str], margin_s: float) -> dict[str, int]:
        """Return the sequence of each scope after which its changes are news to a user who joined it."""
        async with self._database.connection() as conn:
            return await member_scopes.join_sequences(conn, app_id, user_id, scopes, margin_s)

    async def _read_heads(self, requests: Sequence[_HeadsRequest]) -> Sequence[list[ScopeState | None]]:
        distinct = list(
            dict.fromkeys((app_id, user_id, scope) for app_id, user_id, scopes in requests for scope in scopes)
        )
        found: dict[tuple[str, str | None, str], ScopeState | None] = {}
        most = self._limits.heads_per_statement
        async with self._database.connection() as conn:
            for start in range(0, len(distinct), most):
                reads = distinct[start : start + most]
                found |= zip(reads, await member_scopes.scope_states(conn, reads), strict=True)
        return [[found[app_id, user_id, scope] for scope in scopes] for app_id, user_id, scopes in requests]

    async def _read_member_scopes(self, users: Sequence[UserKey]) -> Sequence[tuple[list[ScopeState], bool]]:
        async with self._database.connection() as conn:
            return await member_scopes.member_scopes(conn, users)

    async def _read_pages(self, requests: Sequence[PageRequest]) -> Sequence[Pages | None]:
        order = round_robin(requests, self._last_served)
        answers: list[Pages | None] = [None] * len(requests)
        sent: Counter[Caller] = Counter()
        room = PAGE_OCTETS
        async with self._database.connection() as conn:
            for indexes in statements(order, requests, self._limits.pages_per_statement):
                if room <= 0:
                    break
                reads = [(request, at) for request in (requests[index] for index in indexes) for at in request.cursors]
                found, octets = await read_pages(conn, reads, room)
                room -= octets
                pages = iter(found)
                for index in indexes:
                    of_request = [next(pages) for _ in requests[index].cursors]
                    if not all(page is not None and page.is_deferred for page in of_request):
                        answers[index] = within_share(requests[index].caller, of_request, sent)
        if None in answers:
            self._note_served(requests, answers)
        return answers

    def _note_served(self, requests: Sequence[PageRequest], answers: Sequence[Pages | None]) -> None:
        turn = next(self._turns)
        for caller in {request.caller for request, answer in zip(requests, answers, strict=True) if answer is not None}:
            self._last_served[caller] = turn
            self._last_served.move_to_end(caller)
        while len(self._last_served) > _MAX_SERVED_CALLERS:
            self._last_served.popitem(last=False)
