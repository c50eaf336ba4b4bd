"""The one pool of PostgreSQL connections, its transactions, and what its failures mean.

Safe behind a transaction pooler: no kept prepared statements, no LISTEN, no session settings, no session locks.
Everything a transaction needs is set with SET LOCAL, in the same round trip as its BEGIN.

Nothing rests on a default that an administrator or a provider may set for the database or the login: transactions name
their isolation, and where the default is another one, statements by themselves get a transaction too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import asyncpg

from syncbeat_server.errors import AccessDenied, DependencyDown, DependencyUnfit, Overloaded, SyncbeatError
from syncbeat_server.storage.postgres.pool import (
    CONNECT_TIMEOUT_S,
    READ_COMMITTED,
    STATEMENT_TIMEOUT_S,
    ConnectionPool,
    PooledConnection,
)

Row = Mapping[str, Any]

_LOCK_TIMEOUT_MS = 4_000
# A process that vanishes, or is stopped, holds its locks until the database ends its session. That is longer than a
# busy loop or a paused machine keeps a transaction waiting (4 s were seen), and shorter than two waits for its locks:
# whoever was refused once gets through when it tries again.
_IDLE_IN_TRANSACTION_MS = 6_000
# What the client gives up after that long ends on the server too, also when no client is left to cancel it.
_BEGIN = f"""BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS};
SET LOCAL idle_in_transaction_session_timeout = {_IDLE_IN_TRANSACTION_MS};
SET LOCAL statement_timeout = {round(STATEMENT_TIMEOUT_S * 1000)};
SET LOCAL tcp_user_timeout = 15000"""
# Since version 17. It ends a session that waits for the second part of a statement too; on earlier ones
# storage/postgres/stuck_sessions.py does so.
_BOUND = ";\nSET LOCAL transaction_timeout = 10000"
_SETTING = "SYNCBEAT_DATABASE_URL"

# SQLSTATE classes and codes that say "the server, not the statement": PostgreSQL documentation, appendix A.
_DOWN_CLASSES = ("08", "53", "57P", "58")
_READ_ONLY = "25006"
# The session was ended because we let its transaction wait: this process was stopped, or too busy, for that long.
_LEFT_OPEN = ("25P03", "25P04")
# Login, database, schema, table, function, column, type, key: there with each migrated database, and there again once a
# restore is over, in the course of which they come one after the other. XX: what is dropped while it is looked up.
_MISSING = ("28000", "28P01", "3D000", "3F000", "42P01", "42883", "42703", "42704", "42P10")
_MISSING_CLASS = "XX"
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"
_INSUFFICIENT_PRIVILEGE = "42501"
# The last two are keys: what a statement had found a moment before was deleted meanwhile, or what it had not was made.
_RETRY_ALONE = ("40001", "40P01", "21000", "23503", "23505")


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

    said: ClassVar[str] = "a statement was rejected by the database"

    def __init__(self, sqlstate: str, constraint: str) -> None:
        super().__init__(self.said)
        self.sqlstate = sqlstate
        self.fault = f"SQLSTATE {sqlstate}"
        self.constraint = constraint


class RightLost(StatementRejected, AccessDenied):
    """Row security refused a user's statement: it may not do this, or not any more since its call was let in."""

    said = "this is not the caller's to do, or not any more"


class RightMissing(StatementRejected, DependencyUnfit):
    """The service's own login may not do this, which only its operators can mend."""

    said = "the database refuses this to the service"


class ObjectMissing(StatementRejected, DependencyUnfit):
    """What every statement of the service rests on is not there: the database is dropped, made anew or restored just
    now, or was never migrated."""

    said = "the database is not as the service needs it"


class TooSlow(DependencyDown):
    """One statement took longer than any may, and was ended: nothing of its transaction is kept."""


class Conflict(Overloaded):
    """Two transactions were in each other's way (deadlock, serialisation): alone it would have worked."""


class LockTimeout(Overloaded):
    """Another transaction held a row for too long."""


@dataclass(frozen=True)
class RowOwner:
    """The user whose rows a USER's transaction may see."""

    app_id: str
    user_id: str


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
        return TooSlow("the database took too long")
    if state == _INSUFFICIENT_PRIVILEGE:
        return RightMissing(state, "")
    if state == _READ_ONLY or state in _LEFT_OPEN or state.startswith(_DOWN_CLASSES):
        return DependencyDown("the database does not answer")
    if state in _MISSING or state.startswith(_MISSING_CLASS):
        return ObjectMissing(state, "")
    if state in _RETRY_ALONE:
        return Conflict("two calls were in each other's way")
    return StatementRejected(state, getattr(error, "constraint_name", None) or "")


def _lacks_grant(error: asyncpg.PostgresError) -> bool:
    # Not a row's but a table's or a function's, which all users may use once the database is whole. The words are those
    # of the server's language; the place in its source is not.
    return getattr(error, "server_source_function", None) == "aclcheck_error"


class _Session:
    """A connection whose errors are domain errors already inside a transaction, where callers decide by them."""

    __slots__ = ("_conn", "as_user")

    def __init__(self, conn: asyncpg.pool.PoolConnectionProxy) -> None:
        self._conn = conn
        self.as_user = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.PostgresError as error:
            if self.as_user and error.sqlstate == _INSUFFICIENT_PRIVILEGE and not _lacks_grant(error):
                raise RightLost(_INSUFFICIENT_PRIVILEGE, "") from error
            raise _translate(error) from error
        except TimeoutError as error:
            raise TooSlow("the database took too long") from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise DependencyDown("the database does not answer") from error

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        with self._translated():
            return cast(Sequence[Row], await self._conn.fetch(query, *args))

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        with self._translated():
            return cast(Row | None, await self._conn.fetchrow(query, *args))

    async def fetchval(self, query: str, *args: object) -> Any:
        with self._translated():
            return await self._conn.fetchval(query, *args)

    async def execute(self, query: str, *args: object) -> str:
        with self._translated():
            return str(await self._conn.execute(query, *args))


class _StatementsOfTheirOwn(_Session):
    """Gives each statement a transaction that names its isolation, where the database's default is another one."""

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
            async with _begun(self._conn):
                yield


class Database:
    """The pool. Acquire through `connection` (single statements) or `transaction`; never nest the two."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection now."""
        return self._pool.waiting

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for statements that are each their own transaction."""
        with translated_errors():
            async with self._acquired() as conn:
                isolation = cast(PooledConnection, conn).default_isolation
                yield _Session(conn) if isolation == READ_COMMITTED else _StatementsOfTheirOwn(conn)

    @asynccontextmanager
    async def transaction(self, owner: RowOwner | None = None) -> AsyncIterator[Connection]:
        """One transaction: committed at the end of the block, rolled back when it raises.

        With `owner` it runs under the role that sees only that user's rows; `step_up` ends that.
        """
        with translated_errors():
            async with self._acquired() as conn:
                try:
                    async with _begun(conn):
                        session = _Session(conn)
                        if owner is not None:
                            await become_user(session, owner)
                        yield session
                except BaseException as error:
                    if _is_read_only(error):
                        await self._pool.driver.expire_connections()
                    raise

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        conn = await self._pool.acquire()
        try:
            yield conn
        finally:
            await self._pool.release(conn)


@asynccontextmanager
async def _begun(conn: asyncpg.pool.PoolConnectionProxy) -> AsyncIterator[None]:
    try:
        await conn.execute(_BEGIN + _BOUND if cast(PooledConnection, conn).bounds_transactions else _BEGIN)
        yield
        await conn.execute("COMMIT")
    except BaseException:
        await _roll_back(conn)
        raise


async def step_up(conn: Connection) -> None:
    """Leave the USER role for the rest of the transaction, for what the service does by itself."""
    await conn.execute("SET LOCAL ROLE NONE")
    _note_role(conn, as_user=False)


async def become_user(conn: Connection, owner: RowOwner) -> None:
    """Take the USER role for the rest of the transaction: only the owner's rows are seen."""
    await conn.execute(
        """SELECT set_config('syncbeat.app_id', $1, true), set_config('syncbeat.user_id', $2, true),
                  set_config('role', 'syncbeat_user', true)""",
        owner.app_id,
        owner.user_id,
    )
    _note_role(conn, as_user=True)


def _note_role(conn: Connection, *, as_user: bool) -> None:
    if isinstance(conn, _Session):
        conn.as_user = as_user


async def _roll_back(conn: asyncpg.pool.PoolConnectionProxy) -> None:
    # A connection that cannot roll back is closed, and the pool makes a new one.
    try:
        if not conn.is_closed():
            await conn.execute("ROLLBACK", timeout=CONNECT_TIMEOUT_S)
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


@asynccontextmanager
async def open_database(url: str, *, size: int, name: str) -> AsyncIterator[Database]:
    """Open the pool for the block.

    Raises:
        DependencyDown: the database cannot be reached, or refuses the login.
    """
    with _errors_of_opening(), translated_errors():
        pool = ConnectionPool(url, size=size, name=name)
    try:
        with _errors_of_opening(), translated_errors():
            await pool.open()
        yield Database(pool)
    finally:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await pool.driver.close()
        except TimeoutError:
            pool.driver.terminate()
