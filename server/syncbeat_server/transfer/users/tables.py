"""Declares how each table names a user, which of its columns the user is told, and what an erasure leaves. Pure.

A test holds this against the catalog of the database, columns included, so that a new table or column has to choose.
What is not listed is not exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class UserTable:
    """Says which rows and columns of one table are a user's.

    Attributes:
        where: The condition of the user's rows, beside that of the app; $1 is the app, $2 the user.
        columns: The columns exported; the first two give the order. `app_id`, which all have, is said once.
        withheld: Columns that are not exported, with the reason.
        shown: What is exported in place of a column, which has a part that is another's.
        stays: The reason why rows stay when the user is erased; empty: none stays.
    """

    where: str
    columns: tuple[str, ...]
    withheld: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    stays: str = ""


def _columns(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_OWN = "user_id = $2"
_INTERNAL = "the server's own bookkeeping, which says nothing of the user"
_OF_OTHERS = "may name another user"
_DIGEST = "a digest of what the user's app sent, and not that itself"

USER_TABLES: Mapping[str, UserTable] = {
    "users": UserTable(
        _OWN,
        _columns("user_id created_at generation revoked_at revoke_reason disabled_at deleted_at"),
        stays="the row says only that the user is deleted, and keeps its tokens refused (ADR 24)",
    ),
    "user_identities": UserTable(
        _OWN,
        _columns("issuer subject user_id linked_by linked_at"),
        {"link_id": _INTERNAL, "email_digest": _DIGEST},
        stays="the issuers' subjects by which the deleted user stays refused; digests of addresses go (ADR 195)",
    ),
    "sessions": UserTable(
        _OWN,
        _columns(
            "session_id user_id device_id claims generation counter confirmed created_at refreshed_at idle_until "
            "expires_at revoked_at revoke_reason"
        ),
    ),
    "devices": UserTable(
        _OWN,
        _columns(
            "user_id device_id platform registration_token token_state token_registered_at token_state_at "
            "token_invalid_at time_zone locale activity activity_at registered_at updated_at reach_answered "
            "reach_missed reach_at"
        ),
        {"token_digest": _DIGEST},
    ),
    "preferences": UserTable(
        _OWN, _columns("user_id updated_at quiet_start quiet_end quiet_zone max_per_day muted_types")
    ),
    "scope_members": UserTable(_OWN, _columns("user_id scope role added_at")),
    "device_cursors": UserTable(_OWN, _columns("device_id scope user_id epoch sequence seen_at fetched fetched_at")),
    "user_tiers": UserTable(_OWN, _columns("user_id tier updated_at")),
    "quota_usage": UserTable("name = 'user:' || $2", _columns("month method_class subject name used updated_at")),
    "request_records": UserTable(
        "caller = 'user:' || $2",
        _columns("rpc request_id caller answer created_at"),
        {"content_hash": _DIGEST},
    ),
    "notifications": UserTable(
        "(caller = 'user:' || $2 OR notification_id IN "
        "(SELECT d.notification_id FROM deliveries d WHERE d.app_id = $1 AND d.user_id = $2))",
        _columns(
            "created_at notification_id kind caller content texts type dedupe_key collapse_key priority critical "
            "due_at expires_at"
        ),
        {"patient": _INTERNAL, "accepted": "counts the devices of others too", "traceparent": _INTERNAL},
        shown={"caller": "CASE WHEN caller LIKE 'user:%' AND caller <> 'user:' || $2 THEN NULL ELSE caller END"},
        stays="what was sent to others too, or only to others, is theirs; it goes by its age "
        "(SYNCBEAT_KEEP_DELIVERIES_DAYS)",
    ),
    "deliveries": UserTable(
        _OWN,
        _columns(
            "created_at delivery_id notification_id user_id device_id scope epoch sequence cursors state reason "
            "attempts priority due_at expires_at first_claimed_at provider_message_id updated_at sent_at received_at "
            "opened_at answer_by resends collapse_key collapse_order"
        ),
        dict.fromkeys(
            _columns("lease_token lease_until moves ambiguous counted_at called_back traceparent"), _INTERNAL
        ),
    ),
    "expansions": UserTable(
        "targets @> jsonb_build_array(jsonb_build_object('user_id', $2::text))",
        _columns("created_at notification_id due_at expected written called_off"),
        {
            "targets": _OF_OTHERS,
            "after_user": _OF_OTHERS,
            "after_device": _OF_OTHERS,
            "window_s": _INTERNAL,
        },
    ),
    "dedupe_windows": UserTable(
        _OWN,
        _columns("device_id dedupe_key user_id scope trails opened_by trailed_by epoch sequence window_until duration"),
    ),
    "wake_budgets": UserTable(
        "(user_id = $2 OR jsonb_exists(spent, 'user:' || $2))",
        _columns("filled_at user_id device_id tokens"),
        {"spent": _OF_OTHERS},
        shown={
            "user_id": "CASE WHEN user_id = $2 THEN user_id END",
            "device_id": "CASE WHEN user_id = $2 THEN device_id END",
        },
        stays="the devices of others remember for some hours whose changes woke them",
    ),
    "token_moves": UserTable(
        "$2 IN (from_user_id, to_user_id)",
        _columns("moved_at move_id refused from_user_id from_device_id to_user_id to_device_id"),
        {"token_digest": _DIGEST, "caller": _OF_OTHERS},
        shown={
            "from_user_id": "CASE WHEN from_user_id = $2 THEN from_user_id END",
            "from_device_id": "CASE WHEN from_user_id = $2 THEN from_device_id END",
            "to_user_id": "CASE WHEN to_user_id = $2 THEN to_user_id END",
            "to_device_id": "CASE WHEN to_user_id = $2 THEN to_device_id END",
        },
    ),
    "token_removals": UserTable(_OWN, _columns("removed_at removal_id user_id device_id"), {"token_digest": _DIGEST}),
    "touches": UserTable(
        _OWN,
        _columns("touched_at scope user_id"),
        {"xid": _INTERNAL},
        stays="says to all processes for some minutes that they read the user anew",
    ),
    "events": UserTable(
        "(subject IN ($2, 'user:' || $2) OR jsonb_path_exists(effects, 'strict $.** ? (@ == $user)', "
        "jsonb_build_object('user', $2::text)))",
        _columns(
            "first_seen_at event_id source type subject ordering_key occurred_at caller payload state attempts "
            "duplicate_count failure updated_at"
        ),
        {
            "content_hash": _DIGEST,
            "result": _OF_OTHERS,
            "effects": _OF_OTHERS,
            "deadline_at": _INTERNAL,
            "next_attempt_at": _INTERNAL,
        },
        stays="the record of what another system told goes by its age (SYNCBEAT_KEEP_EVENTS_DAYS)",
    ),
    "audit_entries": UserTable(
        "(subject = 'user:' || $2 OR actor = 'user:' || $2)",
        _columns("occurred_at entry_id action actor address subject request_id details"),
        shown={
            "actor": "CASE WHEN actor LIKE 'operator:%' THEN 'operator' WHEN actor LIKE 'user:%' AND "
            "actor <> 'user:' || $2 THEN 'user' ELSE actor END",
            "address": "CASE WHEN actor = 'user:' || $2 THEN address END",
        },
        stays="the audit log keeps who did what, and goes by its age (SYNCBEAT_KEEP_AUDIT_DAYS, ADR 181)",
    ),
}
"""The tables with rows of users, in the order of an export."""

TABLES_WITHOUT_USERS: Mapping[str, str] = {
    "app_learning": "sums of an app",
    "app_reach": "sums of an app",
    "app_secrets": "a secret of the app",
    "change_samples": "when scopes changed, and not by whom",
    "changes": "values of scopes, without a note of who wrote them; `--values` adds those of the user's scopes",
    "event_order_heads": "the newest time of each ordering key of a source",
    "imports": "how far imports have come, with paths of an export as examples of what did not fit",
    "pruned_feeds": "a place in the feed of an app",
    "scopes": "heads and rates of scopes",
}
"""The other tables with rows of apps, each with what it has."""
