"""Writes a batch of publishes in two statements: what the parts of a publish do one by one, with fewer round trips.

Locks are held from the first statement on, and nothing of the batch waits for this process in between but what the
second statement needs to know of the locked rows (ADR 123).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syncbeat_server.storage.idempotency import CLAIM, RequestKey, answer_columns, answer_sql, claim_columns
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.sync.model import ScopeKey
from syncbeat_server.sync.store.change_writes import Write, source_times, write_columns, write_sql
from syncbeat_server.sync.store.scopes import (
    LockedScope,
    MovedScope,
    advance_columns,
    advance_sql,
    create_sql,
    lock_columns,
    lock_sql,
    locked_scopes,
    updated_rows,
)

# Request records come before scopes in the order of locks: the condition cannot be known before all keys are claimed.
_CLAIMED_FIRST = "WHERE (SELECT count(*) FROM record) >= 0"
_CLAIM_AND_CREATE = f"""WITH record AS ({CLAIM}), locked AS ({create_sql(6, _CLAIMED_FIRST)})
    SELECT (SELECT count(*) FROM record), locked.* FROM locked"""
_CLAIM_AND_LOCK = f"""WITH record AS ({CLAIM}), locked AS ({lock_sql(6, "FOR NO KEY UPDATE", _CLAIMED_FIRST)})
    SELECT (SELECT count(*) FROM record), locked.* FROM locked"""

FIRST_BESIDE = 21
"""The number of the first parameter of what another feature writes in the statement of a batch."""


def _write_sql(source_times: int | None = None) -> str:
    return f"written AS ({write_sql(source_times)}), advanced AS ({advance_sql(9)})"


def _write_and_answer_sql(source_times: int | None = None) -> str:
    return f"WITH written AS ({write_sql(source_times)}), answered AS ({answer_sql(21)}) {advance_sql(9)}"


_WRITE = _write_sql()
_WRITE_AND_ANSWER = _write_and_answer_sql()
_WRITE_AND_ANSWER_WITH_SOURCE_TIMES = _write_and_answer_sql(26)


async def claim_and_lock(
    conn: Connection, requests: Sequence[RequestKey], keys: Sequence[ScopeKey], *, create: bool
) -> tuple[int, dict[ScopeKey, LockedScope]]:
    """Claim distinct request keys, and then lock distinct, sorted scopes. `create` inserts those that are missing.

    Returns the number of keys that were new, and the scopes; neither means anything when there are no scopes.
    """
    statement = _CLAIM_AND_CREATE if create else _CLAIM_AND_LOCK
    rows = [tuple(row.values()) for row in await conn.fetch(statement, *claim_columns(requests), *lock_columns(keys))]
    return rows[0][0] if rows else 0, locked_scopes(row[1:] for row in rows)


async def write_and_answer(
    conn: Connection,
    writes: Sequence[Write],
    moved: Sequence[MovedScope],
    answers: Sequence[tuple[RequestKey, str]],
) -> int:
    """Write keys of locked scopes, their heads, and the answers of claimed requests; return the number of heads."""
    columns = (*write_columns(writes), *advance_columns(moved), *answer_columns(answers))
    if times := source_times(writes):
        return updated_rows(await conn.execute(_WRITE_AND_ANSWER_WITH_SOURCE_TIMES, *columns, *times))
    return updated_rows(await conn.execute(_WRITE_AND_ANSWER, *columns))


@dataclass(frozen=True, slots=True)
class Beside:
    """Holds what another feature writes in the same statement: expressions after WITH, the SELECT that ends it.

    Its parameters begin with `FIRST_BESIDE`.
    """

    sql: str
    columns: Sequence[Any]


async def write_beside(conn: Connection, writes: Sequence[Write], moved: Sequence[MovedScope], beside: Beside) -> Row:
    """Write keys of locked scopes and their heads, and what is written beside them; return the row of its SELECT."""
    columns = (*write_columns(writes), *advance_columns(moved), *beside.columns)
    times = source_times(writes)
    written = _write_sql(FIRST_BESIDE + len(beside.columns)) if times else _WRITE
    (row,) = await conn.fetch(f"WITH {written}, {beside.sql}", *columns, *times)
    return row
