"""Keeps request records: a call with a request_id takes effect once, and its answer is replayed for 30 days.

The record is written in the transaction of the effect, so that neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncbeat_server.errors import RequestIdReused, RequestInFlight, SyncbeatError
from syncbeat_server.storage.postgres.database import Connection, LockTimeout, Row
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

KEPT_FOR = timedelta(days=30)
# App, caller, RPC and request_id: the primary key.
_Identity = tuple[str, str, str, str]


@dataclass(frozen=True)
class RequestKey:
    """Identifies one idempotent call: its caller, RPC and request_id, and a digest of its content."""

    app_id: str
    caller: str
    rpc: str
    request_id: str
    content_hash: bytes

    @classmethod
    def of(cls, app_id: str, caller: str, rpc: str, request_id: str, content_hash: bytes) -> RequestKey | None:
        """Return the key of a call, or None when it has no request_id."""
        return cls(app_id, caller, rpc, request_id, content_hash) if request_id else None

    @property
    def identity(self) -> _Identity:
        """Return the part that is unique in the database."""
        return (self.app_id, self.caller, self.rpc, self.request_id)


@dataclass(frozen=True)
class Answer:
    """Answer to a call (JSON); `replayed` when an earlier call with the same request_id was carried out for it."""

    text: str
    replayed: bool


async def answer_once(
    conn: Connection,
    requests: Sequence[RequestKey | None],
    carry_out: Callable[[Sequence[int]], Awaitable[Sequence[str | SyncbeatError]]],
) -> list[Answer | SyncbeatError]:
    """Answer several calls in this transaction; `carry_out(indexes)` does the new ones and returns their JSON.

    A call without a request_id is always new. A duplicate in the same batch gets the answer of the first; for one in
    another transaction, whose row is locked until it commits, this waits. A call that fails leaves its request_id
    unused.

    Raises:
        RequestIdReused: a request_id was used before with other content.
        RequestInFlight: the duplicate did not end in time.
    """
    before = await _claim(conn, [request for request in requests if request is not None])
    first: dict[RequestKey, int] = {}
    for index, request in enumerate(requests):
        if request is not None and before[request] is None:
            first.setdefault(request, index)
    fresh = [i for i, request in enumerate(requests) if request is None or first.get(request) == i]
    results = dict(zip(fresh, await carry_out(fresh), strict=True)) if fresh else {}
    await _store_answers(conn, [(key, text) for key, i in first.items() if isinstance(text := results[i], str)])
    await _release(conn, [key for key, i in first.items() if isinstance(results[i], SyncbeatError)])
    answers: list[Answer | SyncbeatError] = []
    for index, request in enumerate(requests):
        known = None if request is None else before[request]
        result = known if known is not None else results[index if request is None else first[request]]
        answers.append(Answer(result, replayed=index not in results) if isinstance(result, str) else result)
    return answers


async def _claim(conn: Connection, keys: Sequence[RequestKey]) -> dict[RequestKey, str | None]:
    """Claim the keys; return None for a new one, else the JSON of its first answer."""
    if not keys:
        return {}
    distinct = {key.identity: key for key in reversed(keys)}
    fresh = await _insert(conn, list(distinct.values()))
    known = await _read(conn, [key for identity, key in distinct.items() if identity not in fresh])
    answers: dict[RequestKey, str | None] = {}
    for key in keys:
        if key.identity in fresh:
            content_hash, answer = distinct[key.identity].content_hash, None
        elif key.identity in known:
            content_hash, answer = known[key.identity]
        else:
            raise RequestInFlight("the first call with this request_id was forgotten just now")
        if content_hash != key.content_hash:
            raise RequestIdReused("this request_id came before with other content")
        answers[key] = answer
    return answers


async def _read(conn: Connection, keys: Sequence[RequestKey]) -> dict[_Identity, tuple[bytes, str | None]]:
    """Return the content hash and the answer of each record."""
    if not keys:
        return {}
    rows = await conn.fetch(
        """SELECT r.app_id, r.caller, r.rpc, r.request_id, r.content_hash, r.answer
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                AS k (app_id, caller, rpc, request_id)
           JOIN request_records r USING (app_id, caller, rpc, request_id)""",
        *_columns(keys)[:4],
    )
    return {_identity(row): (row["content_hash"], row["answer"]) for row in rows}


def _identity(row: Row) -> _Identity:
    return (row["app_id"], row["caller"], row["rpc"], row["request_id"])


async def _insert(conn: Connection, keys: Sequence[RequestKey]) -> set[_Identity]:
    """Add the records that do not exist, and return their identities; wait for those that another transaction adds."""
    try:
        rows = await conn.fetch(
            """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
               SELECT app_id, caller, rpc, request_id, content_hash, syncbeat_now()
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
                    AS k (app_id, caller, rpc, request_id, content_hash)
               ORDER BY app_id, caller, rpc, request_id
               ON CONFLICT DO NOTHING RETURNING app_id, caller, rpc, request_id""",
            *_columns(keys),
        )
    except LockTimeout:
        raise RequestInFlight("the first call with this request_id has not ended yet") from None
    return {_identity(row) for row in rows}


async def _release(conn: Connection, keys: Sequence[RequestKey]) -> None:
    if not keys:
        return
    await conn.execute(
        """DELETE FROM request_records r
           USING unnest($1::text[], $2::text[], $3::text[], $4::text[])
                 AS k (app_id, caller, rpc, request_id)
           WHERE (r.app_id, r.caller, r.rpc, r.request_id) = (k.app_id, k.caller, k.rpc, k.request_id)
             AND r.answer IS NULL""",
        *_columns(keys)[:4],
    )


async def _store_answers(conn: Connection, answers: Sequence[tuple[RequestKey, str]]) -> None:
    if not answers:
        return
    await conn.execute(
        """UPDATE request_records r SET answer = k.answer::jsonb
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                AS k (app_id, caller, rpc, request_id, answer)
           WHERE (r.app_id, r.caller, r.rpc, r.request_id) = (k.app_id, k.caller, k.rpc, k.request_id)""",
        *_columns([key for key, _ in answers])[:4],
        [text for _, text in answers],
    )


FORGET_OLD = delete_oldest_sql(
    "request_records", "app_id, caller, rpc, request_id", "created_at", f"{KEPT_FOR.days} days"
)


async def forget_old(conn: Connection, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` records older than `KEPT_FOR`."""
    return await delete_oldest(conn, FORGET_OLD, limit, since)


async def forget_caller(conn: Connection, app_id: str, caller: str) -> None:
    """Delete all records of a caller."""
    await conn.execute("DELETE FROM request_records WHERE app_id = $1 AND caller = $2", app_id, caller)


def _columns(keys: Sequence[RequestKey]) -> tuple[list[str], list[str], list[str], list[str], list[bytes]]:
    return (
        [k.app_id for k in keys],
        [k.caller for k in keys],
        [k.rpc for k in keys],
        [k.request_id for k in keys],
        [k.content_hash for k in keys],
    )
