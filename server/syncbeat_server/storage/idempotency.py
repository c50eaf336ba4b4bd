"""Request records: a request_id is answered once, in the transaction of its effect, and replayed for 30 days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from syncbeat_server.errors import RequestIdReused
from syncbeat_server.storage.postgres import Connection

KEPT_FOR = timedelta(days=30)


@dataclass(frozen=True)
class RequestKey:
    """One idempotent call: who made it, which RPC, its request_id and a digest of its content."""

    app_id: str
    caller: str
    rpc: str
    request_id: str
    content_hash: bytes

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What must be unique."""
        return (self.app_id, self.caller, self.rpc, self.request_id)


async def claim(conn: Connection, keys: Sequence[RequestKey]) -> dict[RequestKey, str | None]:
    """Claim the keys in this transaction: None for a new one, else the JSON of the first answer.

    A twin in another transaction is waited for (its row is locked until it commits).

    Raises:
        RequestIdReused: a key came before with other content.
        LockTimeout: the twin did not end in time.
    """
    distinct = list({key.identity: key for key in reversed(keys)}.values())
    await conn.execute(
        """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
           SELECT app_id, caller, rpc, request_id, content_hash, syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
                AS k (app_id, caller, rpc, request_id, content_hash)
           ORDER BY app_id, caller, rpc, request_id
           ON CONFLICT DO NOTHING""",
        *_columns(distinct),
    )
    rows = await conn.fetch(
        """SELECT r.app_id, r.caller, r.rpc, r.request_id, r.content_hash, r.answer
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
                AS k (app_id, caller, rpc, request_id)
           JOIN request_records r USING (app_id, caller, rpc, request_id)""",
        *_columns(distinct)[:4],
    )
    found = {(r["app_id"], r["caller"], r["rpc"], r["request_id"]): r for r in rows}
    answers: dict[RequestKey, str | None] = {}
    for key in keys:
        row = found[key.identity]
        if row["content_hash"] != key.content_hash:
            raise RequestIdReused("this request_id came before with other content", request_id=key.request_id)
        answers[key] = row["answer"]
    return answers


async def answer(conn: Connection, answers: Sequence[tuple[RequestKey, str]]) -> None:
    """Keep the first answer (JSON) of each key, in the transaction of its effect."""
    await conn.execute(
        """UPDATE request_records r SET answer = k.answer::jsonb
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                AS k (app_id, caller, rpc, request_id, answer)
           WHERE (r.app_id, r.caller, r.rpc, r.request_id) = (k.app_id, k.caller, k.rpc, k.request_id)""",
        *_columns([key for key, _ in answers])[:4],
        [text for _, text in answers],
    )


async def forget_old(conn: Connection, limit: int) -> int:
    """Delete up to `limit` records older than `KEPT_FOR`; answers how many."""
    return int(
        await conn.fetchval(
            """WITH old AS (
                   SELECT ctid FROM request_records WHERE created_at < syncbeat_now() - $1::interval
                   LIMIT $2 FOR UPDATE SKIP LOCKED),
               gone AS (DELETE FROM request_records r USING old WHERE r.ctid = old.ctid RETURNING 1)
               SELECT count(*) FROM gone""",
            KEPT_FOR,
            limit,
        )
    )


def _columns(keys: Sequence[RequestKey]) -> tuple[list[str], list[str], list[str], list[str], list[bytes]]:
    return (
        [k.app_id for k in keys],
        [k.caller for k in keys],
        [k.rpc for k in keys],
        [k.request_id for k in keys],
        [k.content_hash for k in keys],
    )
