"""Runs statements and transactions on the one pool of PostgreSQL connections, and translates the driver's errors.

Safe behind a transaction pooler: no kept prepared statements, no LISTEN, no session settings, no session locks.
Everything a transaction needs is set with SET LOCAL, in the same round trip as its BEGIN.

Relies on no default that an administrator or a provider may set for the database or the login: transactions name their
isolation, and where the default is another one, single statements get a transaction too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import asyncpg

from syncbeat_server.errors import (
    DeadlineExceeded,
    DependencyDown,
)
from syncbeat_server.ops.tracing.spans import Span, recorded_span
from syncbeat_server.runtime.deadline import time_left_s
from syncbeat_server.storage.postgres.driver_errors import (
    INSUFFICIENT_PRIVILEGE,
    NO_ANSWER,
    READ_ONLY,
    TOO_SLOW,
    PermissionLost,
    StatementRejected,
    StatementTimeout,
    lacks_grant,
    translate,
    translated_errors,
)
from syncbeat_server.storage.postgres.pool.connection_pool import READ_COMMITTED, ConnectionPool, PooledConnection
from syncbeat_server.storage.postgres.pool.pool_figures import PoolFigures, PoolStatus
from syncbeat_server.storage.postgres.statement_spans import statement_span
from syncbeat_server.storage.postgres.time_limits import (
    DEFAULT_LIFE,
    DEFAULT_TIMINGS,
    BeginsInTime,
    BeginStatements,
    ConnectionLife,
    DatabaseTimings,
    waiting_for_locks,
)

Row = Mapping[str, Any]

_ROLLBACK_S = 5.0
_LATE = 0.3  # of the time that a call had: by so much its statements end early
_SETTING = "SYNCBEAT_DATABASE_URL"


class Connection(Protocol):
    """Connection as store functions use it."""

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """Return all rows of one statement."""
        ...

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """Return the first row, or None."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """Return the first column of the first row, or None."""
        ...

    async def execute(self, query: str, *args: object) -> str:
        """Run one statement for its effect."""
        ...


@dataclass(frozen=True)
class RowOwner:
    """Identifies the user whose rows a USER's transaction may see."""

    app_id: str
    user_id: str


class _Session:
    """Connection that raises domain errors, on which callers decide inside their transaction."""

    __slots__ = ("_answer_s", "_conn", "_span", "as_user")

    def __init__(self, conn: asyncpg.pool.PoolConnectionProxy, answer_s: float | None = None) -> None:
        """`answer_s`: seconds within which the server answers each statement, or ends it; None: it ends none."""
        self._conn = conn
        self._answer_s = answer_s
        self._span = recorded_span()
        self.as_user = False

    def _run(self, query: str) -> AbstractContextManager[None]:
        return self._translated() if self._span is None else self._traced(self._span, query)

    @contextmanager
    def _traced(self, parent: Span, query: str) -> Iterator[None]:
        span = statement_span(parent, query)
        try:
            with self._translated():
                yield
        except BaseException as error:
            sqlstate = getattr(error.__cause__, "sqlstate", None)
            if sqlstate:
                span.set("db.response.status_code", sqlstate)
            span.fail(sqlstate or type(error).__name__)
            raise
        finally:
            span.end()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.PostgresError as error:
            if self.as_user and error.sqlstate == INSUFFICIENT_PRIVILEGE and not lacks_grant(error):
                raise PermissionLost(INSUFFICIENT_PRIVILEGE, "") from error
            raise translate(error) from error
        except TimeoutError as error:
            _give_up(self._conn)  # it may be silent, and those that are as old
            if self._answer_s is None:
                raise StatementTimeout(TOO_SLOW) from error
            raise DependencyDown(NO_ANSWER) from error  # it was not heard: else the server had ended it
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise DependencyDown(NO_ANSWER) from error

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        with self._run(query):
            return cast(Sequence[Row], await self._conn.fetch(query, *args, timeout=self._answer_s))

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        with self._run(query):
            return cast(Row | None, await self._conn.fetchrow(query, *args, timeout=self._answer_s))

    async def fetchval(self, query: str, *args: object) -> Any:
        with self._run(query):
            return await self._conn.fetchval(query, *args, timeout=self._answer_s)

    async def execute(self, query: str, *args: object) -> str:
        with self._run(query):
            return str(await self._conn.execute(query, *args, timeout=self._answer_s))


class _IsolatedSession(_Session):
    """Connection that gives each statement a transaction of read committed, where the default is another isolation."""

    __slots__ = ("_begin",)

    def __init__(self, conn: asyncpg.pool.PoolConnectionProxy, begin: BeginStatements) -> None:
        super().__init__(conn, begin.answer_s)
        self._begin = begin

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        async with self._isolated():
            return await super().fetch(query, *args)

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        async with self._isolated():
            return await super().fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object) -> Any:
        async with self._isolated():
            return await super().fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        async with self._isolated():
            return await super().execute(query, *args)

    @asynccontextmanager
    async def _isolated(self) -> AsyncIterator[None]:
        with translated_errors():
            async with _begun(self._conn, self._begin):
                yield


class Database:
    """Pool of connections. Acquire one by `connection` (single statements) or `transaction`; never nest the two."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._begins = BeginsInTime(pool.timings)
        self.breaker = pool.breaker
        """Open while the server is away."""

    @property
    def waiting(self) -> int:
        """Return how many callers wait for a connection now."""
        return self._pool.waiting

    @property
    def pool_status(self) -> PoolStatus:
        """Return the figures of the pool at this moment."""
        return self._pool.status

    @property
    def pool_figures(self) -> PoolFigures:
        """Return the counts of the pool since its start."""
        return self._pool.figures

    def log_in_by(self, url: str) -> None:
        """Open connections by this address from now on. Raises ConfigurationError if more than its login differs."""
        self._pool.log_in_by(url)

    async def reconnect(self) -> None:
        """Replace every connection before its next use: those open lead to a server that takes no writes."""
        await self._pool.driver.expire_connections()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Yield a connection for statements that are each a transaction of their own."""
        with self._watched():
            async with self._acquired() as conn:
                isolation = cast(PooledConnection, conn).default_isolation
                yield _Session(conn) if isolation == READ_COMMITTED else _IsolatedSession(conn, self._begins.any_time)

    @asynccontextmanager
    async def transaction(
        self,
        owner: RowOwner | None = None,
        *,
        lock_s: float | None = None,
        begin: BeginStatements | None = None,
    ) -> AsyncIterator[Connection]:
        """Run one transaction: committed at the end of the block, rolled back when it raises.

        With `owner` it runs under the role that sees only that user's rows; `leave_user_role` ends that. The server
        ends each statement before the deadline of the call. `lock_s`: the most seconds of waiting for a lock;
        None: those of the pool's timings. `begin`: other statements to begin with than the pool's, as of a snapshot.
        """
        with self._watched():
            async with self._acquired() as conn:
                left_s = time_left_s()
                begin = begin or self._begins.within(left_s)
                if begin is None:
                    raise DeadlineExceeded("no time left to do this")
                if lock_s is not None:
                    begin = waiting_for_locks(begin, lock_s)
                try:
                    async with _begun(conn, begin):
                        session = _Session(conn, begin.answer_s)
                        if owner is not None:
                            await take_user_role(session, owner)
                        yield session
                except StatementTimeout as error:
                    if time_left_s() < _LATE * left_s:  # it was ended for its call, and says nothing of the database
                        raise DeadlineExceeded("the work took longer than the call's deadline") from error
                    raise
                except BaseException as error:
                    if _is_read_only(error):
                        await self.reconnect()
                    raise

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Let nobody wait for a server that is away, and have it looked for when it seems to be."""
        self.breaker.require_closed(NO_ANSWER)
        try:
            with self._pool.figures.counted(), translated_errors():
                yield
        except DependencyDown as error:
            if error.is_transient:
                self.breaker.suspect()
            raise

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        conn = await self._pool.acquire()
        try:
            yield conn
        finally:
            await self._pool.release(conn)


@asynccontextmanager
async def _begun(conn: asyncpg.pool.PoolConnectionProxy, begin: BeginStatements) -> AsyncIterator[None]:
    try:
        text = begin.bounded if cast(PooledConnection, conn).bounds_transactions else begin.plain
        await conn.execute(text, timeout=begin.answer_s)
        yield
        await conn.execute("COMMIT", timeout=begin.answer_s)
    except TimeoutError:
        _give_up(conn)
        raise
    except BaseException:
        await _roll_back(conn)
        raise


async def leave_user_role(conn: Connection) -> None:
    """Leave the USER role for the rest of the transaction, for what the service does on its own behalf."""
    await conn.execute("SET LOCAL ROLE NONE")
    _set_as_user(conn, as_user=False)


async def take_user_role(conn: Connection, owner: RowOwner) -> None:
    """Take the USER role for the rest of the transaction, which then sees the owner's rows only."""
    await conn.execute(
        """SELECT set_config('syncbeat.app_id', $1, true), set_config('syncbeat.user_id', $2, true),
                  set_config('role', 'syncbeat_user', true)""",
        owner.app_id,
        owner.user_id,
    )
    _set_as_user(conn, as_user=True)


def _set_as_user(conn: Connection, *, as_user: bool) -> None:
    if isinstance(conn, _Session):
        conn.as_user = as_user


async def _roll_back(conn: asyncpg.pool.PoolConnectionProxy) -> None:
    # A connection that cannot roll back is closed, and the pool opens a new one.
    try:
        if not conn.is_closed():
            await conn.execute("ROLLBACK", timeout=_ROLLBACK_S)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        _give_up(conn)


def _give_up(conn: asyncpg.pool.PoolConnectionProxy) -> None:
    # The pool has already taken back a connection that was lost: there is nothing left to close.
    with suppress(asyncpg.InterfaceError):
        conn.terminate()


def _is_read_only(error: BaseException) -> bool:
    # After a switchover the pool is still connected to the demoted node, where SELECT 1 works and every write fails.
    driver = error.__cause__
    return isinstance(driver, asyncpg.PostgresError) and driver.sqlstate == READ_ONLY


@contextmanager
def _errors_of_opening() -> Iterator[None]:
    # The message names the setting to check: for operators, who see the errors of opening, and not for callers.
    try:
        yield
    except StatementRejected as error:
        raise DependencyDown(
            f"the database refuses the login or the database name of {_SETTING} (SQLSTATE {error.sqlstate})"
        ) from error
    except DependencyDown as error:
        raise DependencyDown(f"{error.message}: check {_SETTING}, and that it runs there") from error


@asynccontextmanager
async def open_database(
    url: str,
    *,
    size: int,
    name: str,
    prepare: bool | None = None,
    timings: DatabaseTimings = DEFAULT_TIMINGS,
    life: ConnectionLife = DEFAULT_LIFE,
) -> AsyncIterator[Database]:
    """Open the pool for the block.

    `prepare`: keep prepared statements on each connection, or do not; None: on those that lead to the server itself.

    Raises:
        DependencyDown: the database cannot be reached, or refuses the login.
    """
    with _errors_of_opening(), translated_errors():
        pool = ConnectionPool(url, size=size, name=name, prepare=prepare, timings=timings, life=life)
    try:
        with _errors_of_opening(), translated_errors():
            await pool.open()
        yield Database(pool)
    finally:
        await pool.breaker.close()
        try:
            async with asyncio.timeout(timings.connect_s):
                await pool.driver.close()
        except TimeoutError:
            pool.driver.terminate()
