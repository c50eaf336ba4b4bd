"""SQL of large targets: how many devices they come to, and their deliveries page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from syncbeat_server.push.model import Content, Kind, Lane, NewNotification, Target
from syncbeat_server.storage.postgres import Connection

AT_ONCE = 1_000
"""The most deliveries that the accepting transaction writes for one notification."""

# A user has at most 100 devices (directory/service.py), so that few users need no counting.
_DEVICES_OF_USER = 100

_TARGETED = """
    SELECT d.user_id, d.device_id, w.scope, w.epoch, w.sequence
    FROM jsonb_to_recordset({targets}) AS w (user_id text, device_id text, scope text, epoch text, sequence bigint,
                                             exclude_user_id text, exclude_device_id text, exclude_device_of text)
    LEFT JOIN scope_members m ON w.scope IS NOT NULL AND m.app_id = {app} AND m.scope = w.scope
    JOIN devices d ON d.app_id = {app} AND d.user_id = coalesce(w.user_id, m.user_id)
                  AND (w.device_id IS NULL OR d.device_id = w.device_id)
    WHERE d.user_id IS DISTINCT FROM w.exclude_user_id
      AND (d.device_id IS DISTINCT FROM w.exclude_device_id OR d.user_id <> w.exclude_device_of)
"""


@dataclass(frozen=True, slots=True)
class Page:
    """The next deliveries of a job: its notification with the targets of this page, and where the next begins."""

    notification: NewNotification
    after: tuple[str, str]
    last: bool


async def count_large(conn: Connection, notifications: Sequence[NewNotification]) -> dict[str, int]:
    """Of the notifications with more than `AT_ONCE` deliveries: how many they are, disabled users' included."""
    maybe = [n for n in notifications if may_be_large(n)]
    if not maybe:
        return {}
    large = await conn.fetch(
        f"""SELECT k.i FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k (app_id, targets, i)
            WHERE (SELECT count(*) FROM ({_TARGETED.format(targets="k.targets::jsonb", app="k.app_id")}
                                         LIMIT {AT_ONCE + 1}) t) > {AT_ONCE}""",  # noqa: S608  # constants
        [n.app_id for n in maybe],
        [_targets_json(n) for n in maybe],
    )
    return {n.notification_id: await _count(conn, n) for n in (maybe[row["i"] - 1] for row in large)}


async def _count(conn: Connection, notification: NewNotification) -> int:
    targeted = _TARGETED.format(targets="$2::jsonb", app="$1::text")
    device = "user_id, device_id" if notification.alerts else "user_id, device_id, scope"
    return int(
        await conn.fetchval(
            f"SELECT count(*) FROM (SELECT DISTINCT {device} FROM ({targeted}) t) t",  # noqa: S608  # constants
            notification.app_id,
            _targets_json(notification),
        )
    )


async def start(conn: Connection, large: Sequence[NewNotification], expected: Sequence[int]) -> None:
    """Write the jobs that will write these notifications' deliveries."""
    await conn.execute(
        """INSERT INTO expansions (app_id, notification_id, targets, expected, window_s, created_at)
           SELECT app_id, notification_id, targets::jsonb, expected, window_s, syncbeat_now()
           FROM unnest($1::text[], $2::uuid[], $3::text[], $4::int[], $5::float8[])
                AS k (app_id, notification_id, targets, expected, window_s)""",
        [n.app_id for n in large],
        [n.notification_id for n in large],
        [_targets_json(n) for n in large],
        list(expected),
        [n.dedupe_window_s for n in large],
    )


async def next_page(conn: Connection, app_ids: Sequence[str]) -> Page | None:
    """Lock the oldest job that nobody else works on, of these apps, and read its next page; None when there is none."""
    job = await conn.fetchrow(
        """SELECT e.*, n.kind, n.caller, n.content, n.type, n.dedupe_key, n.collapse_key, n.priority, n.critical,
                  n.patient, greatest(0, extract(epoch FROM n.due_at - syncbeat_now()))::float8 AS delay_s,
                  extract(epoch FROM n.expires_at - greatest(n.due_at, syncbeat_now()))::float8 AS ttl_s
           FROM expansions e JOIN notifications n USING (app_id, notification_id)
           WHERE e.app_id = ANY($1::text[]) ORDER BY e.created_at LIMIT 1
           FOR UPDATE OF e SKIP LOCKED FOR NO KEY UPDATE OF n SKIP LOCKED""",
        list(app_ids),
    )
    if job is None:
        return None
    rows = await conn.fetch(
        f"""WITH targeted AS ({_TARGETED.format(targets="$2::jsonb", app="$1::text")}),
            page AS (SELECT DISTINCT user_id, device_id FROM targeted WHERE (user_id, device_id) > ($3, $4)
                     ORDER BY user_id, device_id LIMIT {AT_ONCE})
            SELECT t.* FROM page JOIN targeted t USING (user_id, device_id)
            ORDER BY user_id, device_id""",  # noqa: S608  # constants
        job["app_id"],
        job["targets"],
        job["after_user"],
        job["after_device"],
    )
    devices = {(row["user_id"], row["device_id"]) for row in rows}
    notification = NewNotification(
        app_id=job["app_id"],
        notification_id=str(job["notification_id"]),
        kind=Kind(job["kind"]),
        caller=job["caller"],
        content=Content(**orjson.loads(job["content"])),
        targets=tuple(Target(**dict(row)) for row in rows),
        type=job["type"],
        dedupe_key=job["dedupe_key"],
        dedupe_window_s=job["window_s"],
        collapse_key=job["collapse_key"],
        lane=Lane[job["priority"]],
        critical=job["critical"],
        delay_s=job["delay_s"],
        ttl_s=job["ttl_s"],
        patient=job["patient"],
    )
    return Page(notification, max(devices, default=("", "")), last=len(devices) < AT_ONCE)


async def advance(conn: Connection, page: Page, written: int) -> None:
    """Move a job past its page; after the last one the notification knows what it came to, and the job is gone."""
    key = (page.notification.app_id, page.notification.notification_id)
    if page.last:
        await conn.execute(
            """WITH job AS (DELETE FROM expansions WHERE app_id = $1 AND notification_id = $2 RETURNING written)
               UPDATE notifications n SET accepted = job.written + $3 FROM job
               WHERE n.app_id = $1 AND n.notification_id = $2""",
            *key,
            written,
        )
        return
    await conn.execute(
        """UPDATE expansions SET after_user = $3, after_device = $4, written = written + $5
           WHERE app_id = $1 AND notification_id = $2""",
        *key,
        *page.after,
        written,
    )


async def stop(conn: Connection, app_id: str, notification_id: str) -> int:
    """Write no more deliveries of a notification; how many were not written yet."""
    row = await conn.fetchrow(
        """WITH job AS (DELETE FROM expansions WHERE app_id = $1 AND notification_id = $2 RETURNING written, expected)
           UPDATE notifications n SET accepted = job.written FROM job
           WHERE n.app_id = $1 AND n.notification_id = $2
           RETURNING greatest(0, job.expected - job.written) AS unwritten""",
        app_id,
        notification_id,
    )
    return 0 if row is None else int(row["unwritten"])


def may_be_large(notification: NewNotification) -> bool:
    """Whether its deliveries have to be counted before they are written at once."""
    named = sum(_DEVICES_OF_USER if target.device_id is None else 1 for target in notification.targets)
    return named > AT_ONCE or any(target.scope is not None for target in notification.targets)


def _targets_json(notification: NewNotification) -> str:
    return orjson.dumps([asdict(target) for target in notification.targets]).decode()
