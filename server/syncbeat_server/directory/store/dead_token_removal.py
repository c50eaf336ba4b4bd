"""Removes registration tokens that the provider calls dead, a bounded share of an app's at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from syncbeat_server.directory.model import TokenUse
from syncbeat_server.directory.store.device_locks import lock_in_order
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.storage.retention import DeletedBatch, delete_oldest, delete_oldest_sql

REMOVAL_LIMIT_COUNT = 100
REMOVAL_LIMIT_SHARE = 0.05
REMOVAL_LIMIT_MINUTES = 10


@dataclass(frozen=True, slots=True)
class TokenRemoval:
    """Result of removing dead tokens.

    `replaced`: ids of deliveries whose device has a newer token by now. `limit_hit`: apps in which tokens were kept
    because too many were called dead.
    """

    replaced: frozenset[str]
    limit_hit: frozenset[str]


async def lock_devices(conn: Connection, dead: Sequence[TokenUse], foreign: Sequence[TokenUse]) -> None:
    """Lock the devices that `remove_dead_tokens` and `quarantine` will change in this transaction, in key order."""
    for app_id in sorted({d.app_id for d in dead}):  # only one transaction at a time counts removals
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"syncbeat removals {app_id}")
    await lock_in_order(conn, *_device_columns([*dead, *foreign]))


async def remove_dead_tokens(
    conn: Connection, dead: Sequence[TokenUse], invalid: Set[str] = frozenset()
) -> TokenRemoval:
    """Remove registration tokens that the provider calls dead, unless they were registered again meanwhile.

    Call `lock_devices` before.

    `invalid`: the ids of the deliveries whose tokens it called malformed, which are marked so.

    A provider that calls many tokens dead at once is more likely wrong than right: beyond 100, and 5 % of an app's
    tokens, in 10 minutes none is removed.
    """
    apps = sorted({d.app_id for d in dead})
    replaced = await _with_newer_token(conn, dead)
    limit_hit: set[str] = set()
    for app_id in apps:
        of_app = [d for d in dead if d.app_id == app_id and d.delivery_id not in replaced]
        allowed = await _removals_allowed(conn, app_id, len(of_app))
        if allowed < len(of_app):
            limit_hit.add(app_id)
        await _remove(conn, of_app[:allowed], invalid)
    return TokenRemoval(frozenset(replaced), frozenset(limit_hit))


async def _with_newer_token(conn: Connection, dead: Sequence[TokenUse]) -> set[str]:
    rows = await conn.fetch(
        """SELECT k.delivery_id FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                AS k (app_id, user_id, device_id, token, delivery_id)
           JOIN devices v USING (app_id, user_id, device_id)
           WHERE v.token_state IN ('ACTIVE', 'STALE') AND v.registration_token <> k.token""",
        *_device_columns(dead),
        [d.registration_token for d in dead],
        [d.delivery_id for d in dead],
    )
    return {row["delivery_id"] for row in rows}


async def _removals_allowed(conn: Connection, app_id: str, wanted: int) -> int:
    recent = int(
        await conn.fetchval(
            """SELECT count(*) FROM token_removals
               WHERE app_id = $1 AND removed_at > syncbeat_now() - make_interval(mins => $2)""",
            app_id,
            REMOVAL_LIMIT_MINUTES,
        )
    )
    if recent + wanted <= REMOVAL_LIMIT_COUNT:
        return wanted
    tokens = int(
        await conn.fetchval(
            "SELECT count(*) FROM devices WHERE app_id = $1 AND token_digest IS NOT NULL",
            app_id,
        )
    )
    most = max(REMOVAL_LIMIT_COUNT, int((tokens + recent) * REMOVAL_LIMIT_SHARE))
    return max(0, min(wanted, most - recent))


async def _remove(conn: Connection, dead: Sequence[TokenUse], invalid: Set[str]) -> None:
    await conn.execute(
        """WITH gone AS (
               UPDATE devices v SET registration_token = NULL, token_digest = NULL, token_state = 'DEAD',
                      token_state_at = syncbeat_now(), updated_at = syncbeat_now(),
                      token_invalid_at = CASE WHEN k.invalid THEN syncbeat_now() END
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::bytea[], $7::bool[])
                    AS k (app_id, user_id, device_id, token, registered_at, digest, invalid)
               WHERE (v.app_id, v.user_id, v.device_id) = (k.app_id, k.user_id, k.device_id)
                 AND v.registration_token = k.token AND v.token_registered_at <= k.registered_at
               RETURNING v.app_id, v.user_id, v.device_id, k.digest)
           INSERT INTO token_removals (app_id, token_digest, user_id, device_id, removed_at)
           SELECT app_id, digest, user_id, device_id, syncbeat_now() FROM gone""",
        *_device_columns(dead),
        [d.registration_token for d in dead],
        [d.token_registered_at for d in dead],
        [hashlib.sha256(d.registration_token.encode()).digest() for d in dead],
        [d.delivery_id in invalid for d in dead],
    )


async def quarantine(conn: Connection, foreign: Sequence[TokenUse]) -> None:
    """Stop pushing to tokens of another sender, unless they were registered again meanwhile.

    Call `lock_devices` before.
    """
    await conn.execute(
        """UPDATE devices v SET token_state = 'QUARANTINED', token_state_at = syncbeat_now(),
                  updated_at = syncbeat_now()
           FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
                AS k (app_id, user_id, device_id, token, registered_at)
           WHERE (v.app_id, v.user_id, v.device_id) = (k.app_id, k.user_id, k.device_id)
             AND v.registration_token = k.token AND v.token_registered_at <= k.registered_at""",
        *_device_columns(foreign),
        [d.registration_token for d in foreign],
        [d.token_registered_at for d in foreign],
    )


def _device_columns(uses: Sequence[TokenUse]) -> tuple[list[str], list[str], list[str]]:
    return [use.app_id for use in uses], [use.user_id for use in uses], [use.device_id for use in uses]


FORGET_REMOVALS = delete_oldest_sql("token_removals", "app_id, removal_id", "removed_at", "30 days")


async def forget_removals(conn: Connection, limit: int, since: datetime | None = None) -> DeletedBatch:
    """Delete up to `limit` removals that are older than a month."""
    return await delete_oldest(conn, FORGET_REMOVALS, limit, since)
