"""Keeps request records: a call with a request_id takes effect once, and its answer is replayed for 30 days.

The record is written in the transaction of the effect, so that neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncbeat_server.errors import RequestIdReused, RequestInFlight, SyncbeatError
from syncbeat_server.storage.postgres.database import Connection, Row
from syncbeat_server.storage.postgres.driver_errors import LockTimeout
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


# The parts of a statement that claims keys, and that stores answers, for statements that do more: $1 to $5 and the five
# parameters from `first` on are the columns of `claim_columns` and `answer_columns`.
CLAIM = """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
    SELECT app_id, caller, rpc, request_id, content_hash, syncbeat_now()
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
         AS k (app_id, caller, rpc, request_id, content_hash)
    ORDER BY app_id, caller, rpc, request_id
    ON CONFLICT DO NOTHING RETURNING app_id, caller, rpc, request_id"""


def answer_sql(first: int) -> str:
    """Return the statement that stores answers, whose parameters begin with `$first`."""
    names = ", ".join(f"${number}::text[]" for number in range(first, first + 5))
    return f"""UPDATE request_records r SET answer = k.answer::jsonb
        FROM unnest({names}) AS k (app_id, caller, rpc, request_id, answer)
        WHERE (r.app_id, r.caller, r.rpc, r.request_id) = (k.app_id, k.caller, k.rpc, k.request_id)"""


_STORE_ANSWERS = answer_sql(1)


@dataclass(frozen=True)
class ClaimedRequests:
    """Holds the requests of a batch, whose keys this transaction has claimed, and the answers of earlier calls."""

    requests: Sequence[RequestKey | None]
    known: Mapping[RequestKey, str]
    first: Mapping[RequestKey, int]

    @classmethod
    def of(cls, requests: Sequence[RequestKey | None], known: Mapping[RequestKey, str]) -> ClaimedRequests:
        """Find the first call of each key that has no answer."""
        first: dict[RequestKey, int] = {}
        for index, request in enumerate(requests):
            if request is not None and request not in known:
                first.setdefault(request, index)
        return cls(requests, known, first)

    @property
    def fresh(self) -> list[int]:
        """Return the indexes of the calls to carry out: one of each new key, and all without a key."""
        return [i for i, request in enumerate(self.requests) if request is None or self.first.get(request) == i]

    def succeeded(self, results: Mapping[int, str | SyncbeatError]) -> list[tuple[RequestKey, str]]:
        """Return the answers to store, of the results by index of the calls that were carried out."""
        return [(key, text) for key, i in self.first.items() if isinstance(text := results[i], str)]

    def failed(self, results: Mapping[int, str | SyncbeatError]) -> list[RequestKey]:
        """Return the keys to release."""
        return [key for key, i in self.first.items() if isinstance(results[i], SyncbeatError)]

    def answers(self, results: Mapping[int, str | SyncbeatError]) -> list[Answer | SyncbeatError]:
        """Return the answer of each call."""
        answers: list[Answer | SyncbeatError] = []
        for index, request in enumerate(self.requests):
            known = None if request is None else self.known.get(request)
            result = known if known is not None else results[index if request is None else self.first[request]]
            answers.append(Answer(result, replayed=index not in results) if isinstance(result, str) else result)
        return answers


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
    claimed = await claim(conn, requests)
    results = dict(zip(claimed.fresh, await carry_out(claimed.fresh), strict=True)) if claimed.fresh else {}
    answers = claimed.succeeded(results)
    if answers:
        await conn.execute(_STORE_ANSWERS, *answer_columns(answers))
    await release(conn, claimed.failed(results))
    return claimed.answers(results)


async def claim(conn: Connection, requests: Sequence[RequestKey | None]) -> ClaimedRequests:
    """Claim the keys of calls; wait for those that another transaction has claimed. Raises as `answer_once`."""
    keys = distinct_keys(requests)
    with lock_timeouts_of_claims():
        count = len(await conn.fetch(CLAIM, *claim_columns(keys))) if keys else 0
    return await claimed_requests(conn, requests, count)


@contextmanager
def lock_timeouts_of_claims() -> Iterator[None]:
    """Turn the wait for another transaction's claim, when it takes too long, into RequestInFlight."""
    try:
        yield
    except LockTimeout as error:
        if "request_records" not in error.place:
            raise
        raise RequestInFlight("the first call with this request_id has not ended yet") from None


def distinct_keys(requests: Sequence[RequestKey | None]) -> list[RequestKey]:
    """Return the keys to claim: the first of each identity."""
    return list({key.identity: key for key in reversed(requests) if key is not None}.values())


async def claimed_requests(conn: Connection, requests: Sequence[RequestKey | None], claimed: int) -> ClaimedRequests:
    """Return the state of calls after a statement that claimed so many of their distinct keys.

    Raises:
        RequestIdReused, RequestInFlight: as `answer_once`.
    """
    keys = [request for request in requests if request is not None]
    distinct = {key.identity: key for key in reversed(keys)}
    found: Mapping[_Identity, tuple[bytes, str | None]] = {}
    if claimed < len(distinct):
        # Those of this transaction have no answer yet. A committed one always has.
        found = await _read(conn, list(distinct.values()))
    known: dict[RequestKey, str] = {}
    for key in keys:
        if claimed == len(distinct):
            content_hash, answer = distinct[key.identity].content_hash, None
        elif key.identity in found:
            content_hash, answer = found[key.identity]
        else:
            raise RequestInFlight("the first call with this request_id was forgotten just now")
        if content_hash != key.content_hash:
            raise RequestIdReused("this request_id came before with other content")
        if answer is not None:
            known[key] = answer
    return ClaimedRequests.of(requests, known)


async def _read(conn: Connection, keys: Sequence[RequestKey]) -> dict[_Identity, tuple[bytes, str | None]]:
    """Return the content hash and the answer of each record."""
    if not keys:
        return {}
    rows = await conn.fetch(
        """SELECT r.app_id, r.caller, r.rpc, r.request_id, r.content_hash, r.answer
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                AS k (app_id, caller, rpc, request_id)
           JOIN request_records r USING (app_id, caller, rpc, request_id)""",
        *claim_columns(keys)[:4],
    )
    return {_identity(row): (row["content_hash"], row["answer"]) for row in rows}


def _identity(row: Row) -> _Identity:
    return (row["app_id"], row["caller"], row["rpc"], row["request_id"])


async def release(conn: Connection, keys: Sequence[RequestKey]) -> None:
    """Leave the keys of calls that failed unused."""
    if not keys:
        return
    await conn.execute(
        """DELETE FROM request_records r
           USING unnest($1::text[], $2::text[], $3::text[], $4::text[])
                 AS k (app_id, caller, rpc, request_id)
           WHERE (r.app_id, r.caller, r.rpc, r.request_id) = (k.app_id, k.caller, k.rpc, k.request_id)
             AND r.answer IS NULL""",
        *claim_columns(keys)[:4],
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


def answer_columns(answers: Sequence[tuple[RequestKey, str]]) -> tuple[list[str], ...]:
    """Return the columns of the statement that stores answers."""
    return (*claim_columns([key for key, _ in answers])[:4], [text for _, text in answers])


def claim_columns(keys: Sequence[RequestKey]) -> tuple[list[str], list[str], list[str], list[str], list[bytes]]:
    """Return the columns of the statement that claims keys."""
    return (
        [k.app_id for k in keys],
        [k.caller for k in keys],
        [k.rpc for k in keys],
        [k.request_id for k in keys],
        [k.content_hash for k in keys],
    )
