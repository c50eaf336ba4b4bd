"""Pools PostgreSQL connections, and lets callers wait for one, by rank and for a bounded time.

asyncpg's pool opens a connection whenever none of its own is idle and it holds fewer than its size. A server that is
full refuses that (SQLSTATE 53300), although a connection of ours may be idle a millisecond later: callers wait for it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast
from weakref import WeakSet

import asyncpg
from asyncpg.pool import PoolConnectionHolder, PoolConnectionProxy

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.work_origin import WorkRank, fresh_context, task_origin, work_origin
from syncbeat_server.resilience.probed_breaker import ProbedBreaker
from syncbeat_server.storage.postgres.driver_errors import NO_ANSWER, TooManyWait
from syncbeat_server.storage.postgres.hosts import Hosts, without_login
from syncbeat_server.storage.postgres.pool.array_types import know_types, read_array_types
from syncbeat_server.storage.postgres.pool.connection_refusals import is_away, is_too_many
from syncbeat_server.storage.postgres.pool.lent_connections import LentConnections
from syncbeat_server.storage.postgres.pool.pool_figures import PoolFigures, PoolStatus
from syncbeat_server.storage.postgres.pool.prepared_statements import keep_prepared_statements
from syncbeat_server.storage.postgres.pool.ranked_slots import RankedSlots
from syncbeat_server.storage.postgres.pool.tcp_keepalive import set_keepalive
from syncbeat_server.storage.postgres.statement_comments import CommentedConnection, connect_apart
from syncbeat_server.storage.postgres.time_limits import (
    DEFAULT_LIFE,
    DEFAULT_TIMINGS,
    ConnectionLife,
    DatabaseTimings,
)

READ_COMMITTED = "read committed"
_CONNECTING = task_origin("connect")
_ANY_NUMBER = 1 << 62
_CLOSE_S = 1.0

_HEARD_S = 1.0
"""Seconds for which an answer says that the network has not lost the connections that are as old."""
_LONGEST_PAUSE_S = 1.0  # between two requests to a full server


class PooledConnection(CommentedConnection):
    """Connection that leaves nothing to reset, and knows the default isolation of its database."""

    default_isolation: str = READ_COMMITTED
    ends_at_s: float = float("inf")
    """The time of the loop from which it is closed instead of being used again."""
    on_silence: Callable[[PooledConnection], None] | None = None
    """Called when it is given up, still open, since the server gives no answer."""
    opened_at: float = 0.0
    lent_at: float = 0.0
    heard_at: float = 0.0
    """The time at which a caller gave it back last: until then the server had answered."""
    is_lent = False

    def mark_lent(self, is_lent: bool, now: float) -> None:
        """Note if a caller has it: the driver ends one that nobody has because it is idle, and not for silence."""
        self.is_lent = is_lent
        if is_lent:
            self.lent_at = now
        else:
            self.heard_at = now

    def terminate(self) -> None:
        """End it without a word to the server."""
        was_open = not self.is_closed()
        super().terminate()
        if was_open and self.is_lent and self.on_silence is not None:
            self.on_silence(self)

    @property
    def bounds_transactions(self) -> bool:
        """Return True if the server has `transaction_timeout`."""
        return self.get_server_version().major >= 17

    def get_reset_query(self) -> str:
        """Return no statement: no setting of ours outlives a transaction, and this saves a round trip a call."""
        return ""


class ConnectionPool:
    """Hands out at most `size` connections at once. Callers wait for one, also where the server allows fewer."""

    def __init__(
        self,
        url: str,
        *,
        size: int,
        name: str,
        prepare: bool | None = None,
        timings: DatabaseTimings = DEFAULT_TIMINGS,
        life: ConnectionLife = DEFAULT_LIFE,
    ) -> None:
        """`prepare`: keep prepared statements, or do not; None: on connections that lead to the server itself."""
        self._prepare = prepare
        self._life = life
        self.timings = timings
        self.size = size
        self.figures = PoolFigures()
        self.waiting = 0
        """How many callers wait for a connection now."""
        self.driver: asyncpg.Pool = asyncpg.create_pool(
            url,
            # No floor: the task that restores it would be that of the call which met the loss, and whoever comes next
            # connects anyway.
            min_size=0,
            max_size=size,
            connect=self._connect,
            init=self._set_up,
            statement_cache_size=0,
            connection_class=PooledConnection,
            max_queries=_ANY_NUMBER,  # a connection ends by its age
            max_inactive_connection_lifetime=min(life.idle_s, life.most_s),
            command_timeout=timings.single_answer_s,
            timeout=timings.connect_s,
            server_settings={"application_name": name},
        )
        self._url = url
        self._hosts = Hosts(url)
        self._slots = RankedSlots(size)
        self._types: Sequence[asyncpg.Record] | None = None
        self._released = 0
        # Connections of before may lead to a server that is no more.
        self.breaker = ProbedBreaker("postgres", self._probe, timings.probe_s, on_found=self.driver.expire_connections)
        self._lent = LentConnections(self.breaker.suspect)
        self.breaker.on_away = self._lent.end_waits
        self._queue: deque[asyncio.Future[None]] = deque()
        self._refusal: asyncpg.PostgresError | None = None
        self._refused_until = 0.0
        self._pause_s = timings.first_pause_s
        self._jitter = random.SystemRandom().uniform
        self._open: WeakSet[PooledConnection] = WeakSet()
        self._doubted_at = 0.0
        self._is_doubted = False

    def log_in_by(self, url: str) -> None:
        """Open connections by this address from now on; those that are open stay.

        Raises:
            ConfigurationError: it differs in more than user and password.
        """
        if without_login(url) != without_login(self._url):
            raise ConfigurationError(
                "SYNCBEAT_DATABASE_URL: only its user and password can change while a process runs"
            )
        self._url = url

    async def open(self) -> None:
        """Connect once, to check that the server accepts the login. Raises the driver's errors."""
        await self.driver
        _hand_out_connected_first(self.driver)
        await self.release(await self.acquire())

    @property
    def status(self) -> PoolStatus:
        """Return the figures of this moment."""
        connections = self.driver.get_size()
        return PoolStatus(
            size=self.size,
            connections=connections,
            in_use=connections - self.driver.get_idle_size(),
            waiters=self.waiting,
            acquire_p95_s=self.figures.acquire_p95_s(asyncio.get_running_loop().time()),
        )

    async def acquire(self) -> PoolConnectionProxy:
        """Return a connection, the caller's own until it is released.

        Raises:
            CircuitOpen: the server turned out to be away while the caller waited.
            Overloaded: none was free within the time of the caller's rank, while others got theirs.
            TimeoutError: none was free within that time, and nobody gave one back, or none could be opened.
            asyncpg.PostgresError: the server refuses us; for too many connections, it did so all that time.
        """
        now = asyncio.get_running_loop().time
        began_s = now()
        self.waiting += 1
        try:
            await self._take_slot(work_origin.get().rank)
            try:
                self.breaker.require_closed(NO_ANSWER)  # it may have opened meanwhile
                if self._is_doubted:
                    self._is_doubted = False
                    await self.driver.expire_connections()
                conn = await self._connected()
            except BaseException:
                self._slots.give_back()
                raise
        finally:
            self.waiting -= 1
        lent_s = now()
        cast(PooledConnection, conn).mark_lent(True, lent_s)
        self._lent.lend(conn)
        self.figures.acquired(lent_s, lent_s - began_s)
        return conn

    async def release(self, conn: PoolConnectionProxy) -> None:
        """Take a connection back, for the next caller who waits."""
        self._lent.take_back(conn)
        works = _is_open(conn)
        mark_lent = cast(PooledConnection, conn).mark_lent if works else None
        try:
            if works and cast(PooledConnection, conn).ends_at_s <= asyncio.get_running_loop().time():
                # Closing gives its place back; one that does not answer is given up in that time.
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                    await conn.close(timeout=_CLOSE_S)
            await self.driver.release(conn)
            if mark_lent is not None:
                mark_lent(False, asyncio.get_running_loop().time())
        finally:
            self._released += works
            self._slots.give_back()
            self._call_next()

    async def _take_slot(self, rank: WorkRank) -> None:
        released = self._released
        if await self._slots.take(rank, self.timings.wait_s(rank)):
            return
        self.figures.shed[rank] += 1
        if self._released == released:
            raise TimeoutError  # nobody got anything done meanwhile: it is the database that does not answer
        raise TooManyWait(self._jitter(0.0, 1.0))

    async def _connected(self) -> PoolConnectionProxy:
        if self._refusal is None:
            try:
                return await self.driver.acquire(timeout=self.timings.connect_s)
            except asyncpg.PostgresError as error:
                if not is_too_many(error):
                    raise
        return await self._wait_for_one()

    async def _wait_for_one(self) -> PoolConnectionProxy:
        now = asyncio.get_running_loop().time
        ends_at = now() + self.timings.connect_s
        while True:
            # An idle connection is taken at once. Else a released one goes to the caller who came first, and a caller
            # who gets none asks the server again when the pause is over.
            if self._queue or not self.driver.get_idle_size():
                await self._wait_turn(min(self._refused_until, ends_at) - now())
            try:
                return await self.driver.acquire(timeout=max(0.0, ends_at - now()))
            except asyncpg.PostgresError as error:
                if not is_too_many(error) or now() >= ends_at:
                    raise

    async def _wait_turn(self, seconds: float) -> None:
        """Wait until a connection is released for this caller, or for `seconds`."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait([turn], timeout=max(0.0, seconds))
        except asyncio.CancelledError:
            if turn.done():
                self._call_next()  # pass the turn on
            raise
        finally:
            if not turn.done():
                self._queue.remove(turn)

    def _call_next(self) -> None:
        if self._queue:
            self._queue.popleft().set_result(None)

    async def _connect(self, *address: Any, **settings: Any) -> asyncpg.Connection:
        if self._refusal is not None:
            if asyncio.get_running_loop().time() < self._refused_until:
                raise self._refusal.with_traceback(None)
            self._back_off()  # this caller asks for all
        try:
            opened = await _opened(self._hosts, self._url, *address[1:], **settings)
        except asyncpg.PostgresError as error:
            if is_too_many(error) and self._refusal is None:
                self._back_off()
                self._refusal = error
            raise
        self._refusal, self._pause_s = None, self.timings.first_pause_s
        return opened

    async def _set_up(self, conn: asyncpg.Connection) -> None:
        caller = work_origin.set(_CONNECTING)
        try:
            await self._learn(conn)
        finally:
            work_origin.reset(caller)

    async def _learn(self, conn: asyncpg.Connection) -> None:
        if self._types is None:
            self._types = await read_array_types(conn)
        know_types(conn, self._types)
        ((isolation, process),) = await conn.fetch(
            "SELECT current_setting('default_transaction_isolation'), pg_backend_pid()"
        )
        pooled = cast(PooledConnection, conn)
        pooled.default_isolation = isolation
        now_s = asyncio.get_running_loop().time()
        pooled.opened_at, pooled.on_silence = now_s, self._doubt
        self._open.add(pooled)
        # Jittered, so that those that were opened together do not end together.
        pooled.ends_at_s = now_s + self._life.most_s * self._jitter(0.9, 1.0)
        # A pooler does not know, when it greets us, which server process will run a statement: it tells another number.
        # Behind it a statement that one server process has prepared is unknown to the next one.
        if self._prepare or (self._prepare is None and process == conn.get_server_pid()):
            keep_prepared_statements(conn)

    async def _probe(self) -> bool:
        """Tell if the server answers on a connection of its own, outside the pool. One that is full does."""
        try:
            conn = await connect_apart(self._hosts, self._url, "syncbeat probe", self.timings.probe_s)
            try:
                await conn.execute("SELECT 1")
            finally:
                conn.terminate()  # it has answered: that it closes slowly says nothing
        except asyncpg.PostgresError as error:
            return is_too_many(error) or not is_away(error)
        return True

    def _doubt(self, silent: PooledConnection) -> None:
        # The network lost this connection, and perhaps all that are as old: each would take a caller's time to be found
        # out. They are replaced as they are next used (ADR 156). Not where one of them answered just now: then it is
        # this one alone, or its statement is slow.
        now = asyncio.get_running_loop().time()
        if silent.opened_at <= self._doubted_at:
            return
        since = max(silent.lent_at, now - _HEARD_S)
        if not any(one.opened_at <= silent.lent_at and one.heard_at > since for one in self._open if one is not silent):
            self._doubted_at, self._is_doubted = now, True

    def _back_off(self) -> None:
        self._refused_until = asyncio.get_running_loop().time() + self._pause_s * self._jitter(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


class _ConnectedFirst(asyncio.LifoQueue[PoolConnectionHolder]):
    def _get(self) -> PoolConnectionHolder:
        held: list[PoolConnectionHolder] = self._queue  # type: ignore[attr-defined]  # asyncio documents it for subclasses
        for place in reversed(range(len(held))):
            if held[place].is_connected():
                return held.pop(place)
        return held.pop()


def _hand_out_connected_first(pool: asyncpg.Pool) -> None:
    # The driver takes the holder that was put back last, even if it lost its connection and another one is idle.
    driver = cast(Any, pool)  # it has no option for the queue
    ordered = _ConnectedFirst(pool.get_max_size())
    while not driver._queue.empty():
        ordered.put_nowait(driver._queue.get_nowait())
    driver._queue = ordered


def _is_open(conn: PoolConnectionProxy) -> bool:
    try:
        return not conn.is_closed()
    except asyncpg.InterfaceError:  # it ended by itself, and the driver has taken it back
        return False


async def _opened(hosts: Hosts, *address: Any, **settings: Any) -> asyncpg.Connection:
    # In a context of its own: a connection outlives the call that happened to open it, and its later faults must not
    # be logged with that call's id.
    opening = asyncio.get_running_loop().create_task(
        hosts.connect(*address, **settings), context=fresh_context(_CONNECTING)
    )
    try:
        opened: asyncpg.Connection = await opening
    except asyncio.CancelledError:
        # It may have opened at the moment when its call was cancelled.
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            opening.result().terminate()
        raise
    set_keepalive(opened)
    return opened
