"""Plants a row, or many, of an app in every table that has rows of apps."""

from __future__ import annotations

import asyncpg

from tests.support.databases import DatabaseUrls, run_sql

NUMBERED = "FROM generate_series(1, {rows}) n"
# As the superuser, and as a replica would write them: without triggers and references.
PLANTS = {
    "app_learning": "(app_id, target_kind, target_value, price_staleness, price_lateness, tuned_at, sampled_since) "
    "VALUES ('{app}', 'mean', 1, 1, 0, now(), now())",
    "app_reach": "(app_id) VALUES ('{app}')",
    "app_secrets": "(app_id) VALUES ('{app}')",
    "change_samples": f"(app_id, scope, changed_at) SELECT '{{app}}', 's' || n, now() {NUMBERED}",
    "changes": "(app_id, scope, key, sequence, value, changed_at) "
    f"SELECT '{{app}}', 's1', 'k' || n, n, '1', now() {NUMBERED}",
    "dedupe_windows": "(app_id, user_id, device_id, dedupe_key, trails, opened_by, window_until, duration) SELECT "
    f"'{{app}}', 'u1', 'd', 'k' || n, false, gen_random_uuid(), now(), interval '1 minute' {NUMBERED}",
    "deliveries": "(app_id, notification_id, user_id, device_id, state, priority, due_at, expires_at, created_at, "
    "updated_at) SELECT '{app}', lpad(n::text, 32, '0')::uuid, 'u1', 'd', 'PENDING', 0, now(), now() + interval '1 h', "
    f"now(), now() {NUMBERED}",
    "device_cursors": "(app_id, user_id, device_id, scope, epoch, sequence, seen_at) "
    f"SELECT '{{app}}', 'u1', 'd', 's' || n, 'e', 1, now() {NUMBERED}",
    "devices": "(app_id, user_id, device_id, platform, token_state, registered_at, updated_at) "
    f"SELECT '{{app}}', 'u' || n, 'd', 'IOS', 'NONE', now(), now() {NUMBERED}",
    "expansions": "(app_id, notification_id, targets, expected, window_s, created_at) "
    f"SELECT '{{app}}', lpad(n::text, 32, '0')::uuid, '{{{{}}}}', 1, 1, now() {NUMBERED}",
    "imports": "(app_id, import_id, export_name, report, started_at, updated_at) "
    f"SELECT '{{app}}', lpad(n::text, 64, '0'), 'x', '1', now(), now() {NUMBERED}",
    "notifications": "(app_id, notification_id, kind, caller, content, priority, created_at, due_at, expires_at) "
    "SELECT '{app}', lpad(n::text, 32, '0')::uuid, 'MESSAGE', 'c', '{{}}', 'HIGH', now(), now(), now() " + NUMBERED,
    "preferences": f"(app_id, user_id, updated_at) SELECT '{{app}}', 'u' || n, now() {NUMBERED}",
    "pruned_feeds": "(app_id, xid) VALUES ('{app}', '1')",
    "quota_usage": "(app_id, subject, name, method_class, month, used, updated_at) "
    f"SELECT '{{app}}', 'principal', 'user:' || n, 'hint', now()::date, 1, now() {NUMBERED}",
    "request_records": "(app_id, caller, rpc, request_id, content_hash, created_at) "
    f"SELECT '{{app}}', 'c', 'r', 'q' || n, '', now() {NUMBERED}",
    "scope_members": "(app_id, user_id, scope, role, added_at) "
    f"SELECT '{{app}}', 'u' || n, 's1', 'WRITER', now() {NUMBERED}",
    "scopes": f"(app_id, scope, created_at) SELECT '{{app}}', 's' || n, now() {NUMBERED}",
    "sessions": "(app_id, user_id, generation, created_at, refreshed_at, idle_until, expires_at) "
    f"SELECT '{{app}}', 'u1', 0, now(), now(), now(), now() {NUMBERED}",
    "token_moves": "(app_id, token_digest, from_user_id, from_device_id, to_user_id, to_device_id, caller, moved_at) "
    f"SELECT '{{app}}', '', 'u1', 'd', 'v', 'd', 'c', now() {NUMBERED}",
    "token_removals": "(app_id, token_digest, user_id, device_id, removed_at) "
    f"SELECT '{{app}}', '', 'u1', 'd', now() {NUMBERED}",
    "touches": f"(app_id, user_id, xid) SELECT '{{app}}', 'u' || n, n::text::xid8 {NUMBERED}",
    "events": "(app_id, source, event_id, content_hash, caller, type, subject, ordering_key, occurred_at, payload, "
    "state, first_seen_at, updated_at, deadline_at, attempts) "
    f"SELECT '{{app}}', 's', 'e' || n, '', 'c', 't', '', '', now(), '', 'ACCEPTED', now(), now(), now(), 1 {NUMBERED}",
    "event_order_heads": "(app_id, source, ordering_key, occurred_at, event_id, moved_at) "
    f"SELECT '{{app}}', 's', 'k' || n, now(), 'e', now() {NUMBERED}",
    "user_identities": "(app_id, issuer, subject, user_id, linked_by, linked_at) "
    f"SELECT '{{app}}', 'i', 's' || n, 'u' || n, 'IMPORT', now() {NUMBERED}",
    "user_tiers": f"(app_id, user_id, tier, updated_at) SELECT '{{app}}', 'u' || n, 't', now() {NUMBERED}",
    "users": f"(app_id, user_id, created_at) SELECT '{{app}}', 'u' || n, now() {NUMBERED}",
    "wake_budgets": "(app_id, user_id, device_id, tokens, filled_at) "
    f"SELECT '{{app}}', 'u' || n, 'd', 1, now() {NUMBERED}",
}

APPEND_ONLY = {"audit_entries"}
"""Tables whose rows the service's login cannot delete: they outlive an app."""


async def plant_app(urls: DatabaseUrls, app_id: str, rows: int = 1, *tables: str) -> None:
    """Give an app so many rows in each of these tables (of all unless named), or one where an app has one."""
    statements = [
        f"INSERT INTO {table} {PLANTS[table].format(app=app_id, rows=rows)}" for table in tables or sorted(PLANTS)
    ]
    await run_sql(urls.admin_url, "SET session_replication_role = replica", *statements)


async def count_app_rows(urls: DatabaseUrls, app_id: str) -> dict[str, int]:
    """Return an app's rows in each table that the catalog has with an `app_id`, but the append-only ones."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        tables = await conn.fetch(
            "SELECT table_name FROM information_schema.columns JOIN pg_tables ON tablename = table_name "
            "WHERE column_name = 'app_id' AND schemaname = 'public' ORDER BY 1"
        )
        return {
            name: await conn.fetchval(f"SELECT count(*) FROM {name} WHERE app_id = $1", app_id)
            for (name,) in tables
            if name not in APPEND_ONLY
        }
    finally:
        await conn.close()
