"""SQL of the wake-ups whose answer is overdue, and of the counts of answers by device and app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from syncbeat_server.directory.model import FOREGROUND_S, REACH_HALF_LIFE_S
from syncbeat_server.push.policy.reachability import RECENT_HALF_LIFE_S, AppReach
from syncbeat_server.push.policy.resend import UnansweredWakeUp
from syncbeat_server.push.policy.transitions import Event, states_before
from syncbeat_server.push.store.queue import QUEUE_START
from syncbeat_server.push.store.state_sql import ATTEMPTED, HANDED_OVER, becomes, state_list
from syncbeat_server.storage.postgres.database import Connection, Row

_SENT = state_list(states_before(Event.RESEND))

UNANSWERED = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM deliveries
    WHERE answer_by >= $4 AND answer_by <= syncbeat_now() AND state IN {HANDED_OVER}
    ORDER BY answer_by LIMIT $1 FOR UPDATE SKIP LOCKED)
SELECT syncbeat_now() AS now, found.* FROM (SELECT) always LEFT JOIN (
SELECT due.answer_by, due.app_id, due.delivery_id, due.user_id, due.device_id, due.resends,
       coalesce(v.platform, '') AS platform,
       extract(epoch FROM due.expires_at - syncbeat_now())::float8 AS ttl_s,
       extract(epoch FROM due.answer_by - due.sent_at)::float8 AS waited_s,
       due.state NOT IN {_SENT} AS acknowledged,
       extract(epoch FROM least(CASE WHEN c.sequence BETWEEN due.sequence AND s.head THEN c.seen_at END,
                                CASE WHEN c.fetched BETWEEN due.sequence AND s.head THEN c.fetched_at END)
                          - due.sent_at)::float8 AS fetched_s,
       coalesce(v.activity ->> 'state' = 'FOREGROUND'
                AND v.activity_at > syncbeat_now() - make_interval(secs => $2), false) AS foreground,
       coalesce(v.token_state IN ('ACTIVE', 'STALE'), false) AS usable,
       EXISTS (SELECT 1 FROM deliveries newer
               WHERE (newer.app_id, newer.user_id, newer.device_id)
                   = (due.app_id, due.user_id, due.device_id)
                 AND newer.delivery_id > due.delivery_id AND newer.scope = due.scope AND newer.cursors IS NULL
                 AND newer.state IN {ATTEMPTED}
                 AND (newer.epoch <> due.epoch OR newer.sequence >= due.sequence)) AS superseded,
       coalesce(v.reach_answered * decay.left, 0) AS answered,
       coalesce(v.reach_missed * decay.left, 0) AS missed
FROM due
LEFT JOIN devices v USING (app_id, user_id, device_id)
LEFT JOIN scopes s ON (s.app_id, s.scope) = (due.app_id, due.scope)
LEFT JOIN device_cursors c ON (c.app_id, c.user_id, c.device_id, c.scope, c.epoch)
                            = (due.app_id, due.user_id, due.device_id, due.scope, due.epoch)
CROSS JOIN LATERAL (SELECT syncbeat_decay(v.reach_at, $3) AS left) decay
) found ON true ORDER BY found.answer_by
"""


class ResendStep(NamedTuple):
    """Step of a wake-up: lease it to be sent again, or look again in `wait_s`; neither ends the wait for an answer."""

    wake: UnansweredWakeUp
    resend: bool
    wait_s: float | None


class ReachCounts(NamedTuple):
    """Answered and missed tries of an app's wake-ups, over devices that are known to be reachable."""

    first_answered: float = 0.0
    first_missed: float = 0.0
    second_answered: float = 0.0
    second_missed: float = 0.0
    all_answered: float = 0.0
    all_missed: float = 0.0

    def plus(self, other: ReachCounts) -> ReachCounts:
        """Return the sum of both."""
        return ReachCounts(*(own + more for own, more in zip(self, other, strict=True)))


class UnansweredPage(NamedTuple):
    """Wake-ups in the order of their deadlines, the last deadline, and the database's time."""

    wakes: list[UnansweredWakeUp]
    last: datetime | None
    now: datetime


async def lock_unanswered(conn: Connection, limit: int, since: datetime = QUEUE_START.due_at) -> UnansweredPage:
    """Lock up to `limit` wake-ups whose deadline to be answered has passed, the oldest first, from `since` on."""
    rows = await conn.fetch(UNANSWERED, limit, FOREGROUND_S, REACH_HALF_LIFE_S, since)
    wakes = [_wake_up(row) for row in rows if row["delivery_id"] is not None]
    return UnansweredPage(wakes, rows[-1]["answer_by"], rows[0]["now"])


async def settle(conn: Connection, lease_token: str, lease_s: float, steps: Sequence[ResendStep]) -> None:
    """Take a step with each wake-up that `lock_unanswered` locked in this transaction.

    A lease counts as an attempt, so that one that crashes counts.
    """
    await conn.execute(
        f"""UPDATE deliveries d SET
               answer_by = syncbeat_now() + make_interval(secs => k.wait_s),
               state = CASE WHEN k.resend THEN {becomes(Event.RESEND)} ELSE d.state END,
               attempts = d.attempts + k.resend::int, resends = d.resends + k.resend::int,
               lease_token = CASE WHEN k.resend THEN $5::uuid END,
               lease_until = CASE WHEN k.resend THEN syncbeat_now() + make_interval(secs => $6) END,
               updated_at = CASE WHEN k.resend THEN syncbeat_now() ELSE d.updated_at END
           FROM unnest($1::text[], $2::uuid[], $3::bool[], $4::float8[]) AS k (app_id, delivery_id, resend, wait_s)
           WHERE (d.app_id, d.delivery_id) = (k.app_id, k.delivery_id)""",
        [step.wake.app_id for step in steps],
        [step.wake.delivery_id for step in steps],
        [step.resend for step in steps],
        [step.wait_s for step in steps],
        lease_token,
        lease_s,
    )


async def count_apps(conn: Connection, counts: Mapping[str, ReachCounts]) -> dict[str, AppReach]:
    """Add to the counts of each app, and return how its first tries stand now."""
    ordered = sorted(counts)
    rows = await conn.fetch(
        """INSERT INTO app_reach AS r (app_id, first_answered, first_missed, second_answered, second_missed,
                                       all_answered, all_missed, recent_answered, recent_missed, counted_at)
           SELECT k.*, k.first_answered, k.first_missed, syncbeat_now()
           FROM unnest($1::text[], $2::float8[], $3::float8[], $4::float8[], $5::float8[], $6::float8[], $7::float8[])
                AS k (app_id, first_answered, first_missed, second_answered, second_missed, all_answered, all_missed)
           ORDER BY k.app_id
           ON CONFLICT (app_id) DO UPDATE SET
               first_answered = r.first_answered * syncbeat_decay(r.counted_at, $8) + excluded.first_answered,
               first_missed = r.first_missed * syncbeat_decay(r.counted_at, $8) + excluded.first_missed,
               second_answered = r.second_answered * syncbeat_decay(r.counted_at, $8) + excluded.second_answered,
               second_missed = r.second_missed * syncbeat_decay(r.counted_at, $8) + excluded.second_missed,
               all_answered = r.all_answered * syncbeat_decay(r.counted_at, $8) + excluded.all_answered,
               all_missed = r.all_missed * syncbeat_decay(r.counted_at, $8) + excluded.all_missed,
               recent_answered = r.recent_answered * syncbeat_decay(r.counted_at, $9) + excluded.recent_answered,
               recent_missed = r.recent_missed * syncbeat_decay(r.counted_at, $9) + excluded.recent_missed,
               counted_at = excluded.counted_at
           RETURNING app_id, first_answered, first_missed, recent_answered, recent_missed""",
        ordered,
        *([counts[app_id][column] for app_id in ordered] for column in range(6)),
        REACH_HALF_LIFE_S,
        RECENT_HALF_LIFE_S,
    )
    return {row["app_id"]: AppReach(*list(row.values())[1:]) for row in rows}


async def mark_broken(conn: Connection, seconds: Mapping[str, float]) -> None:
    """Note that an app's pushes cannot be relied on for so many seconds from now. A longer time stays."""
    ordered = sorted(seconds)
    await conn.execute(
        """INSERT INTO app_reach AS r (app_id, broken_until)
           SELECT app_id, syncbeat_now() + make_interval(secs => broken_s)
           FROM unnest($1::text[], $2::float8[]) AS k (app_id, broken_s) ORDER BY app_id
           ON CONFLICT (app_id) DO UPDATE SET broken_until = greatest(r.broken_until, excluded.broken_until)""",
        ordered,
        [seconds[app_id] for app_id in ordered],
    )


def _wake_up(row: Row) -> UnansweredWakeUp:
    return UnansweredWakeUp(
        app_id=row["app_id"],
        delivery_id=str(row["delivery_id"]),
        user_id=row["user_id"],
        device_id=row["device_id"],
        platform=row["platform"],
        resends=row["resends"],
        ttl_s=row["ttl_s"],
        waited_s=row["waited_s"],
        acknowledged=row["acknowledged"],
        fetched_s=row["fetched_s"],
        foreground=row["foreground"],
        usable=row["usable"],
        superseded=row["superseded"],
        answered=row["answered"],
        missed=row["missed"],
    )
