"""SQL of the devices that notifications target; accepting continues it in the same statement."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.push.model import NOW_OR_NEVER_TTL_S, Kind, NewNotification, Target

IS_TARGETED = """
          (w.device_id IS NULL OR d.device_id = w.device_id)
      AND d.user_id IS DISTINCT FROM w.exclude_user_id
      AND (d.device_id IS DISTINCT FROM w.exclude_device_id OR d.user_id <> w.exclude_device_of)
      AND NOT EXISTS (SELECT 1 FROM users u WHERE (u.app_id, u.user_id) = (d.app_id, d.user_id)
                                              AND coalesce(u.disabled_at, u.deleted_at) IS NOT NULL)
"""
"""The condition on which a device `d` of the users of a target `w` gets a delivery: it is the one that is named, if one
is, neither user nor device is excluded, and the user is not shut out. Expansion jobs go by it too (`fanout`)."""

# Parts of a statement, in its order:
#   call     the notifications, numbered in the order they came
#   wanted   their targets
#   member   their users, a scope's among them
#   target   the devices that these users have, each once per call and scope
TARGETED = f"""
WITH call AS (
    SELECT * FROM unnest($1::text[], $2::uuid[], $3::text[], $4::float8[], $5::bool[], $6::smallint[],
                         $7::float8[], $8::text[], $9::text[], $18::timestamptz[], $19::bool[]) WITH ORDINALITY
        AS k (app_id, notification_id, dedupe_key, window_s, trails, priority, ttl_s, mutable_type, collapse_key,
              was_due_at, called_off, i)
), wanted AS (
    SELECT * FROM unnest($10::int[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bigint[],
                         $16::text[], $17::text[], $20::text[])
        AS t (i, user_id, device_id, scope, epoch, sequence, exclude_user_id, exclude_device_id, exclude_device_of)
), member AS (
    SELECT * FROM wanted WHERE user_id IS NOT NULL
    UNION ALL
    SELECT w.i, m.user_id, w.device_id, w.scope, w.epoch, w.sequence, w.exclude_user_id, w.exclude_device_id,
           w.exclude_device_of
    FROM wanted w JOIN call USING (i) JOIN scope_members m ON m.app_id = call.app_id AND m.scope = w.scope
    WHERE w.user_id IS NULL
), target AS (
    SELECT DISTINCT ON (call.i, d.user_id, d.device_id, coalesce(w.scope, ''))
           call.*, d.user_id, d.device_id, coalesce(w.scope, '') AS scope, w.epoch, w.sequence,
           CASE WHEN d.token_state NOT IN ('ACTIVE', 'STALE') THEN 'NO_TOKEN'
                WHEN call.mutable_type <> '' AND EXISTS (
                    SELECT 1 FROM preferences p WHERE (p.app_id, p.user_id) = (d.app_id, d.user_id)
                                                  AND call.mutable_type = ANY(p.muted_types)) THEN 'MUTED'
                ELSE '' END AS barred
    FROM member w JOIN call USING (i)
    JOIN devices d ON d.app_id = call.app_id AND d.user_id = w.user_id
    WHERE {IS_TARGETED}
)
"""


def columns(notifications: Sequence[NewNotification]) -> tuple[list[object], ...]:
    """Return the arguments of `TARGETED`."""
    targets = [(index, target) for index, n in enumerate(notifications) for target in n.targets]
    return (
        *_call_columns(notifications),
        *_target_columns(targets),
        [n.due_at for n in notifications],
        [n.called_off for n in notifications],
        [target.exclude_device_of for _, target in targets],
    )


def _call_columns(notifications: Sequence[NewNotification]) -> tuple[list[object], ...]:
    return (
        [n.app_id for n in notifications],
        [n.notification_id for n in notifications],
        [_window_key(n) for n in notifications],
        [n.dedupe_window_s for n in notifications],
        [n.kind is Kind.SYNC for n in notifications],
        [int(n.lane) for n in notifications],
        [n.ttl_s or NOW_OR_NEVER_TTL_S for n in notifications],
        # A silent wake-up shows nothing that could be muted.
        ["" if n.critical or (n.kind is Kind.SYNC and not n.is_alert) else n.type for n in notifications],
        [n.collapse_key for n in notifications],
    )


def _window_key(notification: NewNotification) -> str:
    # With the kind, so that a wake-up does not suppress a message or an alert that happens to have the same key.
    if not notification.dedupe_key or notification.dedupe_window_s <= 0:
        return ""
    return f"{'ALERT' if notification.is_alert else notification.kind}:{notification.dedupe_key}"


def _target_columns(targets: Sequence[tuple[int, Target]]) -> tuple[list[object], ...]:
    return (
        [index + 1 for index, _ in targets],
        [target.user_id for _, target in targets],
        [target.device_id for _, target in targets],
        [target.scope for _, target in targets],
        [target.epoch for _, target in targets],
        [target.sequence for _, target in targets],
        [target.exclude_user_id for _, target in targets],
        [target.exclude_device_id for _, target in targets],
    )
