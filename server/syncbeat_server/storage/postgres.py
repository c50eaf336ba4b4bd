"""The one pool of PostgreSQL connections, its transactions, and what its failures mean.

Safe behind a transaction pooler: no kept prepared statements, no LISTEN, no session settings, no session locks.
Everything a transaction needs is set with SET LOCAL, in the same round trip as its BEGIN.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import asyncpg

from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.storage.hosts import Hosts

Row = Mapping[str, Any]

_LOCK_TIMEOUT_MS = 4_000
_STATEMENT_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_IDLE_CONNECTION_LIFE_S = 300.0
_SETTING = "SYNCBEAT_DATABASE_URL"

# SQLSTATE classes and codes that say "the server, not the statement": PostgreSQL documentation, appendix A.
_DOWN_CLASSES = ("08", "53", "57P", "58")
_READ_ONLY = "25006"
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"
# The last of these is a foreign key: what a statement had found a moment before was deleted meanwhile.
_RETRY_ALONE = ("40001", "40P01", "21000", "23503")


class Connection(Protocol):
    """What a store function may do with the connection it is given."""

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        """All rows of one statement."""
        ...

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        """The first row, or None."""
        ...

    async def fetchval(self, query: str, *args: object) -> Any:
        """The first column of the first row, or None."""
        ...

    async def execute(self, query: str, *args: object) -> str:
        """Run one statement for its effect."""
        ...


class StatementRejected(SyncbeatError):
    """PostgreSQL refused a value or a constraint was broken; `sqlstate` says which, no driver text is kept."""

    def __init__(self, sqlstate: str, constraint: str) -> None:
        super().__init__("a statement was rejected by the database")
        self.sqlstate = sqlstate
        self.constraint = constraint


class Conflict(Overloaded):
    """Two transactions were in each other's way (deadlock, serialisation): alone it would have worked."""


class LockTimeout(Overloaded):
    """Another transaction held a row for too long."""


@dataclass(frozen=True)
class RowOwner:
    """The user whose rows a USER's transaction may see."""

    app_id: str
    user_id: str


class _PoolerSafeConnection(asyncpg.Connection):
    def get_reset_query(self) -> str:
        # Nothing of ours outlives a transaction, so there is nothing to reset: this saves a round trip a call.
        return ""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors into domain errors; the driver's text stays in `__cause__` for the log."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _translate(error) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise DependencyDown("the database does not answer") from error


def _translate(error: asyncpg.PostgresError) -> SyncbeatError:
    state = error.sqlstate or ""
    if state == _LOCK_NOT_AVAILABLE:
        return LockTimeout("another call holds this row; try again")
    if state == _QUERY_CANCELED:
        return DependencyDown("the database took too long")
    if state == _READ_ONLY or state.startswith(_DOWN_CLASSES):
        return DependencyDown("the database does not answer")
    if state in _RETRY_ALONE:
        return Conflict("two calls were in each other's way")
    return StatementRejected(state, getattr(error, "constraint_name", None) or "")


class _Session:
    """A connection whose errors are domain errors already inside a transaction, where callers decide by them."""

    __slots__ = ("_conn",)

    def __init__(self, conn: asyncpg.pool.PoolConnectionProxy) -> None:
        self._conn = conn

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        with translated_errors():
            return cast(Sequence[Row], await self._conn.fetch(query, *args))

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        with translated_errors():
            return cast(Row | None, await self._conn.fetchrow(query, *args))

    async def fetchval(self, query: str, *args: object) -> Any:
        with translated_errors():
            return await self._conn.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        with translated_errors():
            return str(await self._conn.execute(query, *args))


class Database:
    """The pool. Acquire through `connection` (single statements) or `transaction`; never nest the two."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.waiting = 0
        """Who waits for a connection now."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for statements that are each their own transaction."""
        with translated_errors():
            async with self._acquired() as conn:
                yield _Session(conn)

    @asynccontextmanager
    async def transaction(self, owner: RowOwner | None = None) -> AsyncIterator[Connection]:
        """One transaction: committed at the end of the block, rolled back when it raises.

        With `owner` it runs under the role that sees only that user's rows; `step_up` ends that.
        """
        with translated_errors():
            async with self._acquired() as conn:
                try:
                    await conn.execute(f"BEGIN; SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                    session = _Session(conn)
                    if owner is not None:
                        await become_user(session, owner)
                    yield session
                    await conn.execute("COMMIT")
                except BaseException as error:
                    await _roll_back(conn)
                    if _is_read_only(error):
                        await self._pool.expire_connections()
                    raise

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        self.waiting += 1
        try:
            conn = await self._pool.acquire(timeout=_CONNECT_TIMEOUT_S)
        finally:
            self.waiting -= 1
        try:
            yield conn
        finally:
            await self._pool.release(conn)


async def step_up(conn: Connection) -> None:
    """Leave the USER role for the rest of the transaction, for what the service does by itself."""
    await conn.execute("SET LOCAL ROLE NONE")


async def become_user(conn: Connection, owner: RowOwner) -> None:
    """Take the USER role for the rest of the transaction: only the owner's rows are seen."""
    await conn.execute(
        """SELECT set_config('syncbeat.app_id', $1, true), set_config('syncbeat.user_id', $2, true),
                  set_config('role', 'syncbeat_user', true)""",
        owner.app_id,
        owner.user_id,
    )


async def _roll_back(conn: asyncpg.pool.PoolConnectionProxy) -> None:
    # A connection that cannot roll back is closed, and the pool makes a new one.
    try:
        if not conn.is_closed():
            await conn.execute("ROLLBACK", timeout=_CONNECT_TIMEOUT_S)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        # One that was lost the pool has taken back by itself: then there is nothing left to close.
        with suppress(asyncpg.InterfaceError):
            conn.terminate()


def _is_read_only(error: BaseException) -> bool:
    # After a switchover the pool is pinned to the demoted node; SELECT 1 passes and every write fails.
    driver = error.__cause__
    return isinstance(driver, asyncpg.PostgresError) and driver.sqlstate == _READ_ONLY


@contextmanager
def _errors_of_opening() -> Iterator[None]:
    # Who starts a server is told which setting to look at; its callers are not.
    try:
        yield
    except StatementRejected as error:
        raise DependencyDown(
            f"the database refuses the login or the database name of {_SETTING} (SQLSTATE {error.sqlstate})"
        ) from error
    except DependencyDown as error:
        raise DependencyDown(f"{error.message}: check {_SETTING}, and that it runs there") from error


async def _connect(hosts: Hosts, url: str, **settings: Any) -> asyncpg.Connection:
    # In nobody's context: a connection outlives the call that happened to open it, and what befalls it later is not to
    # be logged as that call's.
    opening = asyncio.get_running_loop().create_task(hosts.connect(url, **settings), context=Context())
    try:
        opened: asyncpg.Connection = await opening
        return opened
    except asyncio.CancelledError:
        # It may have opened in the moment in which its call gave up.
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            opening.result().terminate()
        raise


@asynccontextmanager
async def open_database(url: str, *, size: int, name: str) -> AsyncIterator[Database]:
    """Open the pool for the block.

    Raises:
        DependencyDown: the database cannot be reached, or refuses the login.
    """
    pool = asyncpg.create_pool(
        url,
        # No floor: the task that restores it would be that of the call which met the loss, and whoever comes next
        # connects anyway.
        min_size=0,
        max_size=size,
        connect=partial(_connect, Hosts(url)),
        statement_cache_size=0,
        connection_class=_PoolerSafeConnection,
        max_inactive_connection_lifetime=_IDLE_CONNECTION_LIFE_S,
        command_timeout=_STATEMENT_TIMEOUT_S,
        timeout=_CONNECT_TIMEOUT_S,
        server_settings={"application_name": name},
    )
    try:
        with _errors_of_opening(), translated_errors():
            await pool
            await pool.release(await pool.acquire(timeout=_CONNECT_TIMEOUT_S))
        yield Database(pool)
    finally:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await pool.close()
        except TimeoutError:
            pool.terminate()
