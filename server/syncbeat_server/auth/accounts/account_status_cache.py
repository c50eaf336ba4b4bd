"""How callers stand, kept for a minute: is the user known and let in, is the session alive, what has been revoked."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from contextvars import Context
from dataclasses import replace
from typing import NamedTuple

from syncbeat_server.auth.model import Standing, StandingKey, VerifiedToken
from syncbeat_server.auth.store import users
from syncbeat_server.clock import Clock
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Database

KEPT_S, SPREAD = 60.0, 0.1
KEPT_ABSENT_S = 9.0
"""Less 10 % or more: who has just been made must not be locked out for longer than ten seconds."""
_MOST_LOADS = 5


class KeptStanding:
    """A standing, and until when it may be believed (monotonic seconds). An invalidation ends that at once."""

    __slots__ = ("standing", "until")

    def __init__(self, standing: Standing, until: float) -> None:
        self.standing = standing
        self.until = until


class _Asked(NamedTuple):
    key: StandingKey
    first_sight: bool
    counter: int


class _Load:
    """A look-up under way, which all who want the same share."""

    __slots__ = ("stale", "task")

    def __init__(self, task: asyncio.Task[KeptStanding]) -> None:
        self.task = task
        self.stale = False


class Standings:
    """Looks standings up, many at once, and keeps them; at most `size`, those unused for longest go first."""

    def __init__(self, database: Database, clock: Clock, size: int) -> None:
        self._database = database
        self._clock = clock
        self._size = size
        self._kept: OrderedDict[StandingKey, KeptStanding] = OrderedDict()
        self._of_user: defaultdict[tuple[str, str], set[StandingKey]] = defaultdict(set)
        self._loads: dict[StandingKey, _Load] = {}
        self._batches: Batcher[_Asked, Standing] = Batcher(self._read)
        self._spread = random.SystemRandom().uniform

    def kept(self, token: VerifiedToken) -> KeptStanding | None:
        """How the bearer of a token stands, if that is known here and the token says nothing new."""
        key = _key(token)
        kept = self._kept.get(key)
        if kept is None or kept.until <= self._clock.monotonic() or _is_news(token.counter, kept.standing):
            return None
        self._kept.move_to_end(key)
        return kept

    async def of(self, token: VerifiedToken, *, fresh: bool = False) -> KeptStanding:
        """How the bearer of a token stands. A user seen for the first time is recorded, where the issuer allows it.

        `fresh`: what is kept does not count, as for calls that go on for longer than it is kept.

        Raises:
            DependencyDown: it is not known here, and the database does not answer.
        """
        kept = None if fresh else self.kept(token)
        if kept is not None:
            return kept
        key, issuer = _key(token), token.issuer
        load = self._loads.get(key)
        if load is None or load.task.done():
            asked = _Asked(key, issuer.first_sight and not issuer.own, token.counter)
            # Nobody's: who else asks for it shares it.
            load = self._loads[key] = _Load(
                asyncio.get_running_loop().create_task(self._load(asked), context=Context())
            )
            load.task.add_done_callback(_retrieved)
            self._of_user[key.app_id, key.user_id].add(key)
        return await asyncio.shield(load.task)

    def invalidate(self, app_id: str, user_id: str) -> None:
        """Forget how a user stands; a look-up that is under way is made again."""
        for key in self._of_user.get((app_id, user_id), set()).copy():
            self._forget(key)

    def invalidate_session(self, app_id: str, session_id: str) -> None:
        """Forget how a session of ours stands."""
        for key in [key for key in (*self._kept, *self._loads) if (key.app_id, key.session_id) == (app_id, session_id)]:
            self._forget(key)

    def invalidate_app(self, app_id: str | None) -> None:
        """Forget everybody of an app; of every app for None."""
        for key in [key for key in (*self._kept, *self._loads) if app_id in (None, key.app_id)]:
            self._forget(key)

    def _forget(self, key: StandingKey) -> None:
        self._end(key)
        load = self._loads.get(key)
        if load is not None:
            load.stale = True
        else:
            self._unindex(key)

    def _end(self, key: StandingKey) -> None:
        # Tokens that were checked hold on to it: what stands here no more, no invalidation would reach.
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.until = float("-inf")

    def _unindex(self, key: StandingKey) -> None:
        keys = self._of_user.get((key.app_id, key.user_id))
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._of_user[key.app_id, key.user_id]

    async def _load(self, asked: _Asked) -> KeptStanding:
        key = asked.key
        load = self._loads[key]
        try:
            standing = await self._batches.submit(asked)
            for _ in range(_MOST_LOADS):
                if not load.stale:
                    return self._keep(key, standing)
                load.stale = False
                standing = await self._batches.submit(asked)
            return KeptStanding(standing, float("-inf"))
        finally:
            del self._loads[key]
            if key not in self._kept:
                self._unindex(key)

    def _keep(self, key: StandingKey, standing: Standing) -> KeptStanding:
        absent = not standing.known or standing.shut_out or (bool(key.session_id) and not standing.session_alive)
        seconds = (KEPT_ABSENT_S if absent else KEPT_S) * self._spread(1 - SPREAD, 1 + SPREAD)
        self._end(key)
        kept = self._kept[key] = KeptStanding(standing, self._clock.monotonic() + seconds)
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            oldest = next(iter(self._kept))
            self._end(oldest)
            if oldest not in self._loads:
                self._unindex(oldest)
        return kept

    async def _read(self, asked: Sequence[_Asked]) -> Sequence[Standing]:
        keys = [one.key for one in asked]
        async with self._database.connection() as conn:
            found = await users.standings(conn, keys)
            pairs = zip(asked, found, strict=True)
            new = [one.key for one, standing in pairs if one.first_sight and not standing.known]
            if new:
                await users.record_users(conn, [(key.app_id, key.user_id) for key in new])
                # Somebody else may have been first, and have shut the user out since.
                again = dict(zip(new, await users.standings(conn, new), strict=True))
                found = [again.get(key, standing) for key, standing in zip(keys, found, strict=True)]
            shown = {
                (one.key.app_id, one.key.session_id): one.counter
                for one, standing in zip(asked, found, strict=True)
                if _is_news(one.counter, standing)
            }
            if shown:
                await users.confirm_sessions(conn, [(*session, counter) for session, counter in shown.items()])
        return [
            replace(standing, confirmed=max(one.counter, standing.confirmed)) if standing.session_alive else standing
            for one, standing in zip(asked, found, strict=True)
        ]


def _key(token: VerifiedToken) -> StandingKey:
    return StandingKey(token.issuer.app_id, token.user_id, token.session_id if token.issuer.own else "")


def _is_news(counter: int, standing: Standing) -> bool:
    """Whether an access token shows for the first time that what was given out with it has arrived."""
    return standing.session_alive and counter > standing.confirmed


def _retrieved(task: asyncio.Task[KeptStanding]) -> None:
    # Where every caller has gone, nobody else asks what became of it.
    if not task.cancelled():
        task.exception()
