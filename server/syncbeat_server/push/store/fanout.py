"""SQL of notifications whose deliveries are written later: of large targets page by page, scheduled ones when due."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import orjson

from syncbeat_server.push.model import NOW_S, Content, DeliveryState, Kind, Lane, NewNotification, Target
from syncbeat_server.push.store import alerts
from syncbeat_server.storage.postgres.database import Connection, Row

AT_ONCE = 1_000
"""The most deliveries that one transaction writes for one notification."""

# A user has at most 100 devices (directory/service.py), so that few users need no counting.
_DEVICES_OF_USER = 100
_JOBS = 100  # small ones, that one transaction expands

_TARGETED = """
    SELECT d.user_id, d.device_id, w.scope, w.epoch, w.sequence
    FROM jsonb_to_recordset({targets}) AS w (user_id text, device_id text, scope text, epoch text, sequence bigint,
                                             exclude_user_id text, exclude_device_id text, exclude_device_of text)
    LEFT JOIN scope_members m ON w.scope IS NOT NULL AND m.app_id = {app} AND m.scope = w.scope
    JOIN devices d ON d.app_id = {app} AND d.user_id = coalesce(w.user_id, m.user_id)
                  AND (w.device_id IS NULL OR d.device_id = w.device_id)
    WHERE d.user_id IS DISTINCT FROM w.exclude_user_id
      AND (d.device_id IS DISTINCT FROM w.exclude_device_id OR d.user_id <> w.exclude_device_of)
      AND NOT EXISTS (SELECT 1 FROM users u WHERE (u.app_id, u.user_id) = (d.app_id, d.user_id)
                                              AND coalesce(u.disabled_at, u.deleted_at) IS NOT NULL)
"""
_OF_CALL = _TARGETED.format(targets="k.targets::jsonb", app="k.app_id")

_JOB = """SELECT e.*, n.kind, n.caller, n.content, n.type, n.dedupe_key, n.collapse_key, n.priority, n.critical,
                 n.patient, n.due_at AS was_due_at, n.expires_at <= n.due_at AS at_once,
                 extract(epoch FROM n.expires_at - greatest(n.due_at, syncbeat_now()))::float8 AS ttl_s
          FROM expansions e JOIN notifications n USING (app_id, notification_id)"""


@dataclass(frozen=True, slots=True)
class Page:
    """The next deliveries of a job: its notification with the targets of this page, and where the next begins."""

    notification: NewNotification
    after: tuple[str, str]
    last: bool


async def count_deferred(conn: Connection, notifications: Sequence[NewNotification]) -> dict[str, int]:
    """Count the devices of the notifications whose deliveries are written later, by their ids.

    Those are the scheduled ones, and those with more than `AT_ONCE` deliveries.
    """
    maybe = [n for n in notifications if n.due_at is not None or may_be_large(n)]
    if not maybe:
        return {}
    rows = await conn.fetch(
        f"""SELECT k.i FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY
                AS k (app_id, targets, due_at, i)
            WHERE k.due_at > syncbeat_now()
               OR (SELECT count(*) FROM ({_OF_CALL} LIMIT {AT_ONCE + 1}) t) > {AT_ONCE}""",  # noqa: S608  # constants
        [n.app_id for n in maybe],
        [_targets_json(n) for n in maybe],
        [n.due_at for n in maybe],
    )
    return await _count(conn, [maybe[row["i"] - 1] for row in rows])


async def _count(conn: Connection, deferred: Sequence[NewNotification]) -> dict[str, int]:
    rows = await conn.fetch(
        f"""SELECT k.i, (SELECT count(*) FROM (SELECT DISTINCT user_id, device_id, CASE WHEN NOT k.alerts THEN scope END
                                               FROM ({_OF_CALL}) t) t) AS n
            FROM unnest($1::text[], $2::text[], $3::bool[]) WITH ORDINALITY
                AS k (app_id, targets, alerts, i)""",  # noqa: S608  # constants
        [n.app_id for n in deferred],
        [_targets_json(n) for n in deferred],
        [n.alerts for n in deferred],
    )
    return {deferred[row["i"] - 1].notification_id: row["n"] for row in rows}


async def start(conn: Connection, deferred: Sequence[NewNotification], expected: Sequence[int]) -> None:
    """Write the jobs that will write these notifications' deliveries."""
    await conn.execute(
        """INSERT INTO expansions (app_id, notification_id, targets, expected, window_s, created_at, due_at)
           SELECT app_id, notification_id, targets::jsonb, expected, window_s, syncbeat_now(),
                  greatest(due_at, syncbeat_now())
           FROM unnest($1::text[], $2::uuid[], $3::text[], $4::int[], $5::float8[], $6::timestamptz[])
                AS k (app_id, notification_id, targets, expected, window_s, due_at)""",
        [n.app_id for n in deferred],
        [n.notification_id for n in deferred],
        [_targets_json(n) for n in deferred],
        list(expected),
        [n.dedupe_window_s for n in deferred],
        [n.due_at for n in deferred],
    )


async def next_pages(conn: Connection, app_ids: Sequence[str]) -> list[Page]:
    """Lock jobs of these apps that are due and that nobody else works on, and read their next pages.

    Those are small ones that come to about `AT_ONCE` deliveries, and beside them one large one: neither kind waits for
    all of the other.
    """
    small: list[Row] = []
    for job in await _due_jobs(conn, app_ids, "<=", _JOBS):
        small.append(job)
        if sum(job["expected"] for job in small) >= AT_ONCE:
            break
    return await _read_pages(conn, [*small, *await _due_jobs(conn, app_ids, ">", 1)])


async def _due_jobs(conn: Connection, app_ids: Sequence[str], size: str, limit: int) -> Sequence[Row]:
    return await conn.fetch(
        f"""{_JOB}
            WHERE e.app_id = ANY($1::text[]) AND e.due_at <= syncbeat_now() AND e.expected {size} {AT_ONCE}
            ORDER BY e.due_at, e.created_at LIMIT $2
            FOR UPDATE OF e SKIP LOCKED FOR NO KEY UPDATE OF n SKIP LOCKED""",
        list(app_ids),
        limit,
    )


async def _read_pages(conn: Connection, jobs: Sequence[Row]) -> list[Page]:
    if not jobs:
        return []
    rows = await conn.fetch(
        f"""SELECT k.i, t.* FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
                 AS k (app_id, targets, after_user, after_device, i)
            CROSS JOIN LATERAL (
                WITH targeted AS ({_OF_CALL}),
                page AS (SELECT DISTINCT user_id, device_id FROM targeted
                         WHERE (user_id, device_id) > (k.after_user, k.after_device)
                         ORDER BY user_id, device_id LIMIT {AT_ONCE})
                SELECT targeted.* FROM page JOIN targeted USING (user_id, device_id)) t
            ORDER BY k.i, t.user_id, t.device_id""",  # noqa: S608  # constants
        [job["app_id"] for job in jobs],
        [job["targets"] for job in jobs],
        [job["after_user"] for job in jobs],
        [job["after_device"] for job in jobs],
    )
    targets: list[list[Target]] = [[] for _ in jobs]
    for row in rows:
        targets[row["i"] - 1].append(
            Target(row["user_id"], row["device_id"], row["scope"], row["epoch"], row["sequence"])
        )
    return [_page(job, found) for job, found in zip(jobs, targets, strict=True)]


def _page(job: Row, targets: Sequence[Target]) -> Page:
    devices = {(target.user_id or "", target.device_id or "") for target in targets}
    notification = NewNotification(
        app_id=job["app_id"],
        notification_id=str(job["notification_id"]),
        kind=Kind(job["kind"]),
        caller=job["caller"],
        content=Content(**orjson.loads(job["content"])),
        targets=tuple(targets),
        type=job["type"],
        # What is cancelled holds off nothing.
        dedupe_key="" if job["called_off"] else job["dedupe_key"],
        dedupe_window_s=job["window_s"],
        collapse_key=job["collapse_key"],
        lane=Lane[job["priority"]],
        critical=job["critical"],
        due_at=job["was_due_at"],
        # 0 would mean now or never; this one's time is over.
        ttl_s=job["ttl_s"] + (NOW_S if job["at_once"] else 0.0) or -1.0,
        patient=job["patient"],
        called_off=job["called_off"],
    )
    return Page(notification, max(devices, default=("", "")), last=len(devices) < AT_ONCE)


async def write(conn: Connection, pages: Sequence[Page]) -> int:
    """Write the deliveries of pages and move their jobs past them; how many deliveries.

    After its last page a notification knows what it came to, and the job is gone.
    """
    counts = await alerts.write(conn, [page.notification for page in pages])
    written = {name: sum(by_state.values()) for name, by_state in counts.items()}
    await _end(conn, [page.notification for page in pages if page.last])
    for page in pages:
        if not page.last:
            await _advance(conn, page, written[page.notification.notification_id])
    return sum(written.values())


async def _end(conn: Connection, resolved: Sequence[NewNotification]) -> None:
    # Counted, since users may have been erased between two pages.
    await conn.execute(
        """WITH job AS (
               DELETE FROM expansions e USING unnest($1::text[], $2::uuid[]) AS k (app_id, notification_id)
               WHERE (e.app_id, e.notification_id) = (k.app_id, k.notification_id)
               RETURNING e.app_id, e.notification_id)
           UPDATE notifications n
           SET accepted = (SELECT count(*) FROM deliveries d
                           WHERE (d.app_id, d.notification_id) = (n.app_id, n.notification_id))
           FROM job WHERE (n.app_id, n.notification_id) = (job.app_id, job.notification_id)""",
        [n.app_id for n in resolved],
        [n.notification_id for n in resolved],
    )


async def _advance(conn: Connection, page: Page, written: int) -> None:
    # It may have grown since it was accepted: then it is a large one from here on.
    await conn.execute(
        f"""UPDATE expansions SET after_user = $3, after_device = $4, written = written + $5,
                   expected = greatest(expected, {AT_ONCE + 1})
            WHERE app_id = $1 AND notification_id = $2""",  # noqa: S608  # constants
        page.notification.app_id,
        page.notification.notification_id,
        *page.after,
        written,
    )


async def call_off(conn: Connection, app_id: str, notification_id: str) -> int:
    """Have what is not written yet of a notification written as CANCELLED; how many deliveries that comes to.

    Those of a small job are written here, those of a large one by the workers, from now on.
    """
    called_off = await conn.fetchval(
        """UPDATE expansions SET called_off = true, due_at = least(due_at, syncbeat_now())
           WHERE app_id = $1 AND notification_id = $2 AND NOT called_off RETURNING true""",
        app_id,
        notification_id,
    )
    if called_off is None:
        return 0
    jobs = await conn.fetch(
        f"{_JOB} WHERE e.app_id = $1 AND e.notification_id = $2 FOR NO KEY UPDATE OF n", app_id, notification_id
    )
    if jobs[0]["expected"] > AT_ONCE:
        return max(0, int(jobs[0]["expected"] - jobs[0]["written"]))
    pages = await _read_pages(conn, jobs)
    counts = await alerts.write(conn, [page.notification for page in pages])
    await _end(conn, [page.notification for page in pages])
    return sum(n for (state, _), n in counts[notification_id].items() if state is DeliveryState.CANCELLED)


async def lacking(conn: Connection, app_id: str, variables: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Count the scheduled notifications of an app that do not fit its templates, by the template that they name.

    `variables`: what each template needs. Such a notification is told as it was when it was accepted.
    """
    rows = await conn.fetch(
        """SELECT n.content ->> 'template' AS template, count(*) AS n
           FROM expansions e JOIN notifications n USING (app_id, notification_id)
           LEFT JOIN unnest($2::text[], $3::text[]) AS k (name, variables) ON k.name = n.content ->> 'template'
           WHERE e.app_id = $1 AND n.content ? 'template'
             AND (k.name IS NULL OR NOT coalesce(n.content -> 'variables', '{}')
                                        ?& ARRAY(SELECT jsonb_array_elements_text(k.variables::jsonb)))
           GROUP BY 1""",
        app_id,
        list(variables),
        [orjson.dumps(sorted(names)).decode() for names in variables.values()],
    )
    return {row["template"]: row["n"] for row in rows}


def may_be_large(notification: NewNotification) -> bool:
    """Whether its deliveries have to be counted before they are written at once."""
    named = sum(_DEVICES_OF_USER if target.device_id is None else 1 for target in notification.targets)
    return named > AT_ONCE or any(target.scope is not None for target in notification.targets)


def _targets_json(notification: NewNotification) -> str:
    return orjson.dumps([asdict(target) for target in notification.targets]).decode()
