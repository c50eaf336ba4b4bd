"""SQL of expansion jobs, which write deliveries later: large notifications page by page, scheduled ones when due."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import orjson

from syncbeat_server.defaults import DEVICES_PER_USER
from syncbeat_server.push.model import NOW_OR_NEVER_TTL_S, Content, DeliveryState, Kind, Lane, NewNotification, Target
from syncbeat_server.push.store import alerts
from syncbeat_server.push.store.targets import IS_TARGETED
from syncbeat_server.storage.postgres.database import Connection, Row

MAX_PER_TRANSACTION = 1_000
"""Number of deliveries that one transaction writes for one notification, at most."""

_SMALL_JOBS = 100  # that one transaction expands

_TARGETED = f"""
    SELECT d.user_id, d.device_id, w.scope, w.epoch, w.sequence
    FROM jsonb_to_recordset({{targets}}) AS w (user_id text, device_id text, scope text, epoch text, sequence bigint,
                                               exclude_user_id text, exclude_device_id text, exclude_device_of text)
    LEFT JOIN scope_members m ON w.scope IS NOT NULL AND m.app_id = {{app}} AND m.scope = w.scope
    JOIN devices d ON d.app_id = {{app}} AND d.user_id = coalesce(w.user_id, m.user_id)
    WHERE {IS_TARGETED}"""
_OF_CALL = _TARGETED.format(targets="k.targets::jsonb", app="k.app_id")

_JOB = """SELECT e.*, n.kind, n.caller, n.content, n.type, n.dedupe_key, n.collapse_key, n.priority, n.critical,
                 n.patient, n.due_at AS was_due_at, n.expires_at <= n.due_at AS now_or_never,
                 extract(epoch FROM n.expires_at - greatest(n.due_at, syncbeat_now()))::float8 AS ttl_s
          FROM expansions e JOIN notifications n USING (app_id, notification_id)"""


@dataclass(frozen=True, slots=True)
class Page:
    """Next deliveries of a job: its notification with the targets of this page, and the last device key."""

    notification: NewNotification
    after: tuple[str, str]
    last: bool


async def count_deferred(conn: Connection, notifications: Sequence[NewNotification]) -> dict[str, int]:
    """Return the number of devices, by id, of the notifications whose deliveries are written later.

    Those are the scheduled ones, and those with more than `MAX_PER_TRANSACTION` deliveries.
    """
    candidates = [n for n in notifications if n.due_at is not None or may_be_large(n)]
    if not candidates:
        return {}
    rows = await conn.fetch(
        f"""SELECT k.i FROM unnest($1::text[], $2::text[], $3::timestamptz[]) WITH ORDINALITY
                AS k (app_id, targets, due_at, i)
            WHERE k.due_at > syncbeat_now()
               OR (SELECT count(*) FROM ({_OF_CALL} LIMIT {MAX_PER_TRANSACTION + 1}) t) > {MAX_PER_TRANSACTION}""",
        [n.app_id for n in candidates],
        [_targets_json(n) for n in candidates],
        [n.due_at for n in candidates],
    )
    return await _count(conn, [candidates[row["i"] - 1] for row in rows])


async def _count(conn: Connection, deferred: Sequence[NewNotification]) -> dict[str, int]:
    rows = await conn.fetch(
        f"""SELECT k.i, (SELECT count(*) FROM (SELECT DISTINCT user_id, device_id, CASE WHEN NOT k.alerts THEN scope END
                                               FROM ({_OF_CALL}) t) t) AS n
            FROM unnest($1::text[], $2::text[], $3::bool[]) WITH ORDINALITY
                AS k (app_id, targets, alerts, i)""",
        [n.app_id for n in deferred],
        [_targets_json(n) for n in deferred],
        [n.is_alert for n in deferred],
    )
    return {deferred[row["i"] - 1].notification_id: row["n"] for row in rows}


async def insert_jobs(conn: Connection, deferred: Sequence[NewNotification], expected: Sequence[int]) -> None:
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


async def lock_next_pages(conn: Connection, app_ids: Sequence[str]) -> list[Page]:
    """Lock due jobs of these apps that no other worker has locked, and return their next pages.

    Those are small jobs with about `MAX_PER_TRANSACTION` deliveries in all, and one large job: neither kind waits for
    all of the other.
    """
    small: list[Row] = []
    for job in await _due_jobs(conn, app_ids, "<=", _SMALL_JOBS):
        small.append(job)
        if sum(job["expected"] for job in small) >= MAX_PER_TRANSACTION:
            break
    return await _read_pages(conn, [*small, *await _due_jobs(conn, app_ids, ">", 1)])


async def _due_jobs(conn: Connection, app_ids: Sequence[str], size: str, limit: int) -> Sequence[Row]:
    return await conn.fetch(
        f"""{_JOB}
            WHERE e.app_id = ANY($1::text[]) AND e.due_at <= syncbeat_now() AND e.expected {size} {MAX_PER_TRANSACTION}
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
                         ORDER BY user_id, device_id LIMIT {MAX_PER_TRANSACTION})
                SELECT targeted.* FROM page JOIN targeted USING (user_id, device_id)) t
            ORDER BY k.i, t.user_id, t.device_id""",
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
        # A cancelled notification suppresses nothing.
        dedupe_key="" if job["called_off"] else job["dedupe_key"],
        dedupe_window_s=job["window_s"],
        collapse_key=job["collapse_key"],
        lane=Lane[job["priority"]],
        critical=job["critical"],
        due_at=job["was_due_at"],
        # Not 0, which would mean now or never: its time is over.
        ttl_s=job["ttl_s"] + (NOW_OR_NEVER_TTL_S if job["now_or_never"] else 0.0) or -1.0,
        patient=job["patient"],
        called_off=job["called_off"],
    )
    return Page(notification, max(devices, default=("", "")), last=len(devices) < MAX_PER_TRANSACTION)


async def write_pages(conn: Connection, pages: Sequence[Page]) -> int:
    """Write the deliveries of pages and move their jobs past them. Returns the number of deliveries.

    After its last page the job is deleted, and the notification gets its final count.
    """
    counts = await alerts.insert(conn, [page.notification for page in pages])
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
    # Its targets may have grown since it was accepted: then it counts as a large job from here on.
    await conn.execute(
        f"""UPDATE expansions SET after_user = $3, after_device = $4, written = written + $5,
                   expected = greatest(expected, {MAX_PER_TRANSACTION + 1})
            WHERE app_id = $1 AND notification_id = $2""",
        page.notification.app_id,
        page.notification.notification_id,
        *page.after,
        written,
    )


async def cancel_unwritten(conn: Connection, app_id: str, notification_id: str) -> int:
    """Have the unwritten deliveries of a notification written as CANCELLED. Returns their number.

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
    if jobs[0]["expected"] > MAX_PER_TRANSACTION:
        return max(0, int(jobs[0]["expected"] - jobs[0]["written"]))
    pages = await _read_pages(conn, jobs)
    counts = await alerts.insert(conn, [page.notification for page in pages])
    await _end(conn, [page.notification for page in pages])
    return sum(n for (state, _), n in counts[notification_id].items() if state is DeliveryState.CANCELLED)


async def count_unfit(conn: Connection, app_id: str, variables: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Count the scheduled notifications of an app that do not fit its templates, by the template that they name.

    `variables`: those that each template needs. Such a notification keeps the texts of its acceptance.
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
    """Return True if its deliveries have to be counted before they are written in one transaction."""
    # Few users need no counting.
    named = sum(DEVICES_PER_USER if target.device_id is None else 1 for target in notification.targets)
    return named > MAX_PER_TRANSACTION or any(target.scope is not None for target in notification.targets)


def _targets_json(notification: NewNotification) -> str:
    return orjson.dumps([asdict(target) for target in notification.targets]).decode()
