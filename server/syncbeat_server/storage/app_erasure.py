"""Counts and deletes all rows of an app, in whatever tables the database has with an `app_id`.

The tables come from the catalog and not from a list, so that a new one cannot be forgotten. Each batch is a transaction
of its own, followed by a pause as long as it took; rows that another transaction holds are skipped until the next
round, so that nobody waits for a batch and no batch waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Connection, Database

MOST_COUNTED = 10_000
"""The most rows of one table that are counted: counting all of a large app would take as long as deleting them."""
_BATCH, _LEAST_BATCH = 1_000, 10
# The bounds of a batch's duration: its size halves above the first, and doubles below the second. PostgreSQL ends a
# statement after ten seconds.
_LONG_S, _SHORT_S = 1.0, 0.25
_LEAST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 2.0
_MOST_ROUNDS = 20
_HELD_PAUSE_S = 0.5

_TABLES = """
    SELECT c.relname::text AS name,
           ARRAY(SELECT k.attname::text
                 FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS at (attnum, place)
                 JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = at.attnum
                 WHERE i.indrelid = c.oid AND i.indisprimary ORDER BY at.place) AS key,
           ARRAY(SELECT f.confrelid::regclass::text FROM pg_constraint f
                 WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid) AS parents
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'app_id' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
      AND has_table_privilege(c.oid, 'DELETE')
    ORDER BY 1"""


@dataclass(frozen=True)
class AppTable:
    """Table with rows of apps, and its primary key, which begins with the app."""

    name: str
    key: tuple[str, ...]


@dataclass(frozen=True)
class Erased:
    """Result of an erasure: the rows deleted by table, and the tables of which others held rows to the end."""

    rows: Mapping[str, int] = field(default_factory=dict)
    held: tuple[str, ...] = ()


async def app_tables(conn: Connection) -> list[AppTable]:
    """Return the tables with an `app_id`, each before those that its foreign keys refer to.

    Without those from which the login may not delete: the audit log, which says that the app was erased and goes by
    its age.
    """
    rows = {row["name"]: row for row in await conn.fetch(_TABLES)}
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(rows, ()))
    for name, row in rows.items():
        for parent in row["parents"]:
            if parent in rows:
                order.add(parent, name)
    tables = [AppTable(name, tuple(rows[name]["key"])) for name in order.static_order()]
    for table in tables:
        if table.key[:1] != ("app_id",):
            raise AssertionError(f"the key of {table.name} does not begin with app_id")
    return tables


async def apps_with_rows(conn: Connection, table: AppTable) -> list[str]:
    """Return the apps that have rows in a table: a step of its key's index for each."""
    found: list[str] = []
    statement = f"SELECT min(app_id) FROM {table.name} WHERE app_id > $1"  # noqa: S608  # the name is the catalog's
    while (app_id := await conn.fetchval(statement, found[-1] if found else "")) is not None:
        found.append(app_id)
    return found


async def count_rows(conn: Connection, table: AppTable, app_id: str) -> int:
    """Return how many rows an app has in a table: up to one more than `MOST_COUNTED`."""
    statement = f"SELECT count(*) FROM (SELECT FROM {table.name} WHERE app_id = $1 LIMIT $2) found"  # noqa: S608  # the catalog's
    found: int = await conn.fetchval(statement, app_id, MOST_COUNTED + 1)
    return found


class AppErasure:
    """Deletes the rows of one app, batch by batch. It can be stopped at any time, and begun again."""

    def __init__(self, database: Database, clock: Clock, app_id: str, on_progress: Callable[[str, int], None]) -> None:
        """`on_progress(table, rows)` is called after each batch, with the rows of the table deleted so far."""
        self._database = database
        self._clock = clock
        self._app_id = app_id
        self._on_progress = on_progress
        self._size = _BATCH
        self._rows: dict[str, int] = {}

    async def run(self) -> Erased:
        """Delete the app's rows in rounds through all tables, until a round finds none: triggers may add some.

        Raises:
            DependencyDown: the database does not answer; what was deleted stays deleted.
        """
        async with self._database.connection() as conn:
            tables = await app_tables(conn)
        held: list[str] = []
        for _ in range(_MOST_ROUNDS):
            gone = sum([await self._empty(table) for table in tables])
            async with self._database.connection() as conn:
                held = [table.name for table in tables if await count_rows(conn, table, self._app_id)]
            if not held:
                break
            if not gone:
                await self._clock.sleep(_HELD_PAUSE_S)
        return Erased(self._rows, tuple(held))

    async def _empty(self, table: AppTable) -> int:
        """Delete the rows of a table that nobody holds, and return their number."""
        total, place, more = 0, (), True
        while more:
            began, size = self._clock.monotonic(), self._size
            try:
                async with self._database.transaction() as conn:
                    found, gone, place = await _delete_batch(conn, table, self._app_id, size, place)
            except SyncbeatError:
                if size <= _LEAST_BATCH:
                    raise
                self._size = max(_LEAST_BATCH, size // 4)  # it may have been too much for one statement
                continue
            took_s, more, total = self._clock.monotonic() - began, found == size, total + gone
            if took_s > _LONG_S:
                self._size = max(_LEAST_BATCH, size // 2)
            elif took_s < _SHORT_S:
                self._size = min(_BATCH, size * 2)
            if gone:
                self._rows[table.name] = self._rows.get(table.name, 0) + gone
                self._on_progress(table.name, self._rows[table.name])
            if more:
                await self._clock.sleep(min(_LONGEST_PAUSE_S, max(_LEAST_PAUSE_S, took_s)))
        return total


async def _delete_batch(
    conn: Connection, table: AppTable, app_id: str, limit: int, place: Sequence[Any]
) -> tuple[int, int, tuple[Any, ...]]:
    """Delete up to `limit` rows after `place`, the rest of a key. Returns rows found, rows deleted, the next place.

    A batch starts where the one before ended: deleted rows stay in the index until they are vacuumed.
    """
    key, rest = ", ".join(table.key), ", ".join(table.key[1:])
    mine, theirs = (", ".join(f"{alias}.{column}" for column in table.key) for alias in ("t", "doomed"))
    after = f"AND ({rest}) > ({', '.join(f'${number}' for number in range(3, 3 + len(place)))})" if place else ""
    backwards = ", ".join(f"{column} DESC" for column in table.key)
    rows = await conn.fetch(
        f"""WITH doomed AS MATERIALIZED (
                SELECT {key} FROM {table.name} WHERE app_id = $1 {after} ORDER BY {key} LIMIT $2
                FOR UPDATE SKIP LOCKED),
            gone AS (DELETE FROM {table.name} t USING doomed WHERE ({mine}) = ({theirs}) RETURNING 1)
            SELECT (SELECT count(*) FROM doomed) AS found_rows, (SELECT count(*) FROM gone) AS gone_rows, doomed.*
            FROM doomed ORDER BY {backwards} LIMIT 1""",  # noqa: S608  # names of the catalog
        app_id,
        limit,
        *place,
    )
    if not rows:
        return 0, 0, ()
    last = rows[0]
    return last["found_rows"], last["gone_rows"], tuple(last[column] for column in table.key[1:])
