"""Caches account statuses for a minute: is the user known and not blocked, is the session active, what is revoked."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.auth.accounts.recent_invalidations import RecentInvalidations
from syncbeat_server.auth.accounts.refresh_confirmation import confirms_refresh, record_confirmations
from syncbeat_server.auth.accounts.unknown_users import insert_unknown
from syncbeat_server.auth.model import AccountKey, AccountStatus, VerifiedToken
from syncbeat_server.auth.store import users
from syncbeat_server.clock import Clock
from syncbeat_server.ops.work_origin import fresh_context
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Database

CACHE_S, JITTER = 60.0, 0.1
"""The most seconds from the reading of a status to its end, which the jitter only shortens: what a backend changes, a
user's tier for one, holds after a minute even where no invalidation arrives."""
MOST_REMOVED = 4
"""Entries removed at most when one is added: no call pays for all that ended in a lull, and the cache shrinks all the
same."""
NEGATIVE_CACHE_S = 9.0
"""Less than ten seconds: a user or session made just now must not be locked out for longer."""
# After so many invalidations during one read its result is returned but not cached.
_MAX_READS = 5


class CachedStatus:
    """A status and the monotonic time in seconds until which it is valid. An invalidation ends it at once."""

    __slots__ = ("status", "valid_until")

    def __init__(self, status: AccountStatus, valid_until: float) -> None:
        self.status = status
        self.valid_until = valid_until


class _Read(NamedTuple):
    key: AccountKey
    accept_unknown: bool
    counter: int


class _PendingRead:
    """A read in progress, shared by all callers who want the same status."""

    __slots__ = ("stale", "task")

    def __init__(self, task: asyncio.Task[CachedStatus]) -> None:
        self.task = task
        self.stale = False


class AccountStatusCache:
    """Least-recently-used cache of at most `size` statuses; reads them from the database in batches."""

    def __init__(self, database: Database, clock: Clock, size: int, negative_cache_s: float = NEGATIVE_CACHE_S) -> None:
        self._database = database
        self._negative_cache_s = negative_cache_s
        self._clock = clock
        self._size = size
        self._entries: OrderedDict[AccountKey, CachedStatus] = OrderedDict()
        # By the subject, and by the user whom it names if that is another.
        self._keys_by_user: defaultdict[tuple[str, str], set[AccountKey]] = defaultdict(set)
        self._linked_users: dict[AccountKey, str] = {}
        self._invalidated = RecentInvalidations()
        self._pending: dict[AccountKey, _PendingRead] = {}
        self._batcher: Batcher[_Read, AccountStatus] = Batcher(self._read_batch)
        self._uniform = random.SystemRandom().uniform

    def cached(self, token: VerifiedToken) -> CachedStatus | None:
        """Return the status of a token's account if it is cached and the token confirms no newer refresh token."""
        key = _key(token)
        entry = self._entries.get(key)
        if entry is None or entry.valid_until <= self._clock.monotonic():
            return None
        if confirms_refresh(token.counter, entry.status):
            return None
        self._entries.move_to_end(key)
        return entry

    async def get(self, token: VerifiedToken, *, fresh: bool = False) -> CachedStatus:
        """Return the status of a token's account, and insert an unknown user if the token's issuer allows that.

        `fresh` reads it anew even if it is cached, for streams that stay open longer than an entry is valid.

        Raises:
            DependencyDown: it is not cached and the database does not answer.
        """
        entry = None if fresh else self.cached(token)
        if entry is not None:
            return entry
        key, issuer = _key(token), token.issuer
        pending = self._pending.get(key)
        if pending is None or pending.task.done():
            read = _Read(key, issuer.accept_unknown_users and not issuer.own_sessions, token.counter)
            # In a context of its own, not this caller's: others share the task.
            pending = self._pending[key] = _PendingRead(
                asyncio.get_running_loop().create_task(self._read(read), context=fresh_context())
            )
            pending.task.add_done_callback(_retrieve_error)
            self._keys_by_user[key.app_id, key.subject].add(key)
        return await asyncio.shield(pending.task)

    def invalidate_user(self, app_id: str, user_id: str) -> None:
        """Drop a user's statuses; reads in progress start over."""
        for key in self._keys_by_user.get((app_id, user_id), set()).copy():
            self._invalidate(key)
        if self._pending:
            self._invalidated.add(app_id, user_id)

    def invalidate_session(self, app_id: str, session_id: str) -> None:
        """Drop the status of one of our sessions."""
        keys = [key for key in (*self._entries, *self._pending) if (key.app_id, key.session_id) == (app_id, session_id)]
        for key in keys:
            self._invalidate(key)

    def invalidate_app(self, app_id: str | None) -> None:
        """Drop all statuses of an app, or of every app for None."""
        for key in [key for key in (*self._entries, *self._pending) if app_id in (None, key.app_id)]:
            self._invalidate(key)

    def _invalidate(self, key: AccountKey) -> None:
        self._expire(key)
        pending = self._pending.get(key)
        if pending is not None:
            pending.stale = True
        else:
            self._unindex(key)

    def _expire(self, key: AccountKey) -> None:
        # Verified tokens hold a reference to the entry, so removing it here alone would leave them valid.
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry.valid_until = float("-inf")

    def _unindex(self, key: AccountKey) -> None:
        self._unindex_user(key, key.subject)
        if key in self._linked_users:
            self._unindex_user(key, self._linked_users.pop(key))

    def _unindex_user(self, key: AccountKey, user_id: str) -> None:
        keys = self._keys_by_user.get((key.app_id, user_id))
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._keys_by_user[key.app_id, user_id]

    def _index_linked(self, key: AccountKey, user_id: str) -> None:
        before = self._linked_users.pop(key, None)
        if before is not None and before != user_id:
            self._unindex_user(key, before)
        if user_id not in ("", key.subject):
            self._linked_users[key] = user_id
            self._keys_by_user[key.app_id, user_id].add(key)

    async def _read(self, read: _Read) -> CachedStatus:
        key = read.key
        pending = self._pending[key]
        try:
            for _ in range(_MAX_READS):
                began_at, pending.stale = self._clock.monotonic(), False
                number = self._invalidated.number
                status = await self._batcher.submit(read)
                linked = status.user_id != key.subject
                if not pending.stale and not (linked and self._invalidated.since(number, key.app_id, status.user_id)):
                    return self._put(key, status, began_at)
            status = await self._batcher.submit(read)
            return CachedStatus(status, float("-inf"))
        finally:
            del self._pending[key]
            if not self._pending:
                self._invalidated.forget()
            if key not in self._entries:
                self._unindex(key)

    def _put(self, key: AccountKey, status: AccountStatus, read_at: float) -> CachedStatus:
        negative = not status.exists or status.blocked or (bool(key.session_id) and not status.session_active)
        seconds = (self._negative_cache_s if negative else CACHE_S) * self._uniform(1 - JITTER, 1)
        self._expire(key)
        if key.issuer:
            self._index_linked(key, status.user_id)
        entry = self._entries[key] = CachedStatus(status, read_at + seconds)
        self._entries.move_to_end(key)
        self._remove_oldest()
        return entry

    def _remove_oldest(self) -> None:
        """Remove what is over the size, and entries that ended, which would fill the cache with users long gone."""
        now = self._clock.monotonic()
        for _ in range(MOST_REMOVED):
            oldest = next(iter(self._entries), None)
            if oldest is None or (len(self._entries) <= self._size and self._entries[oldest].valid_until > now):
                return
            self._expire(oldest)
            if oldest not in self._pending:
                self._unindex(oldest)

    async def _read_batch(self, reads: Sequence[_Read]) -> Sequence[AccountStatus]:
        keys = [read.key for read in reads]
        async with self._database.connection() as conn:
            statuses = await users.read_statuses(conn, keys)
            pairs = zip(reads, statuses, strict=True)
            found = [(read.key, status) for read, status in pairs if read.accept_unknown and not status.exists]
            unknown = await insert_unknown(conn, found) if found else []
            if unknown:
                # Read again: another process may have inserted the user first, and blocked it since.
                again = dict(zip(unknown, await users.read_statuses(conn, unknown), strict=True))
                statuses = [again.get(key, status) for key, status in zip(keys, statuses, strict=True)]
            return await record_confirmations(conn, [(read.key, read.counter) for read in reads], statuses)


def _key(token: VerifiedToken) -> AccountKey:
    issuer = token.issuer
    return AccountKey(
        issuer.app_id,
        token.subject,
        token.session_id if issuer.own_sessions else "",
        issuer.identity_issuer,
        issuer.claims_ids,
    )


def _retrieve_error(task: asyncio.Task[CachedStatus]) -> None:
    # asyncio warns of an error that nobody retrieves; here every waiting caller may have gone.
    if not task.cancelled():
        task.exception()
