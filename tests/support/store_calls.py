"""A call of each function of the stores, which tries to see or change what is Bob's."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from syncbeat_server.audit.model import AuditAction, AuditFilter, NewEntry
from syncbeat_server.audit.store import entries as audit
from syncbeat_server.auth.model import AccountKey, Identity, LinkedBy
from syncbeat_server.auth.store import identities, users
from syncbeat_server.auth.store import sessions as auth
from syncbeat_server.directory.model import Holder, Member, MemberRole, Platform, Preferences, Registration
from syncbeat_server.directory.store import (
    dead_token_removal,
    device_locks,
    devices,
    members,
    preferences,
    token_ageing,
    token_move_rows,
    user_rows,
)
from syncbeat_server.errors import RequestIdReused, RequestInFlight
from syncbeat_server.events.model import LIST_START, EventFilter, EventKey, EventState, OrderKey
from syncbeat_server.events.store import event_batches, event_rows, old_events
from syncbeat_server.events.store.event_batches import BatchWrites
from syncbeat_server.events.store.event_rows import Conclusion
from syncbeat_server.push.model import (
    Content,
    DeliveryFilter,
    DeliveryState,
    DeliveryUpdate,
    Kind,
    NewNotification,
    Reason,
    Target,
)
from syncbeat_server.push.store import (
    alerts,
    app_secrets,
    collapse_keys,
    daily_maximum,
    dedupe_windows,
    fanout,
    lifecycle,
    queue,
    queue_figures,
    user_erasure,
    wake_budgets,
)
from syncbeat_server.push.store import notifications as push
from syncbeat_server.push.store.fanout import Page
from syncbeat_server.ratelimit.model import QuotaKey
from syncbeat_server.ratelimit.store import quota_usage, user_tiers
from syncbeat_server.status.policy.slo_windows import SloTimes, Window
from syncbeat_server.status.store import process_rows, server_connections, slo_counts, slo_figures
from syncbeat_server.storage import idempotency
from syncbeat_server.storage.idempotency import RequestKey
from syncbeat_server.storage.postgres import restore_detection
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.content.firehose_token import FeedPosition
from syncbeat_server.sync.model import Activity, Cursor, Priority
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.policy.scope_signal import initial_signal, signal_after_change
from syncbeat_server.sync.store import (
    change_writes,
    changes,
    device_cursors,
    device_views,
    epochs,
    firehose_pages,
    invalidations,
    member_scopes,
    publish_batches,
    reported_activity,
    scopes,
    tombstones,
)
from syncbeat_server.transfer.store import imports
from syncbeat_server.transfer.store.imports import ImportKey
from tests.support import claimed_delivery
from tests.support.isolation import PHONE, TOKEN

SESSION = [""]  # bob's, in the test that runs
CHANGED_AT = [datetime(2000, 1, 1, tzinfo=UTC)]  # that of bob's change, in the test that runs

REGISTRATION = Registration("default", "bob", "bobs phone", Platform.IOS, "t", "", "")
BOBS = Holder("bob", PHONE.device_id)
DIGEST = hashlib.sha256(TOKEN.encode()).digest()
EVER = datetime(2000, 1, 1, tzinfo=UTC)
WINDOW = ("default", "bob", "bobs phone", "ALERT:k", "bobs")
SIGNAL = signal_after_change(initial_signal(0.0), DEFAULT_PRIOR, 60.0)
ONCE = scopes.Commits(1, 0)
IDS = [str(uuid.uuid4()) for _ in range(3)]
CLAIMED = replace(
    claimed_delivery.MESSAGE,
    delivery_id=IDS[0],
    lease_token=IDS[1],
    notification_id=IDS[2],
    user_id="bob",
    device_id="bobs phone",
    registration_token=TOKEN,
    token_registered_at=datetime(2100, 1, 1, tzinfo=UTC),
    kind=Kind.SYNC,
    scope="bobs",
    sequence=1,
)
NOTIFICATION = NewNotification(
    "default", IDS[2], Kind.MESSAGE, "user:bob", Content(title="t"), (Target(user_id="bob"), Target(scope="bobs"))
)
ALERT = replace(NOTIFICATION, kind=Kind.SYNC, targets=(Target(scope="bobs", epoch="e", sequence=1),))
REQUEST = RequestKey("default", "user:bob", "PublishChanges", "r bobs", b"")
MEMBERS = [Member("bobs", "mallory", MemberRole.WRITER)]
BOBS_ENTRY = NewEntry("default", AuditAction.USER_DELETED, "user:bob", "", "user:bob", "", "{}")
BOBS_QUOTA = QuotaKey("default", "principal", "user:bob", "hint", date(2030, 1, 1))
BOBS_IDENTITY = Identity("default", "https://issuer.example", "bob")
BOBS_EVENT, BOBS_ORDER = EventKey("default", "billing", "bobs"), OrderKey("default", "billing", "bob")
BOBS_IMPORT = ImportKey("default", "0" * 64)
WRITE = [change_writes.Write("default", "bobs", "k", 99, None, "{}")]


async def stored_ranks_of_bobs(conn: Connection) -> object:
    met = change_writes.Candidate("default", "bobs", "k", "{}")
    return (await change_writes.rank_values(conn, [met])).stored


async def no_answers(_indexes: Sequence[int]) -> list[str]:
    return ['"carried out"']


async def answer_to_bob(conn: Connection) -> object:
    try:
        return (await idempotency.claimed_requests(conn, [REQUEST], 0)).known
    except RequestInFlight:
        return None  # no such record
    except RequestIdReused:
        return "a record of other content"


async def others_who_joined(conn: Connection) -> list[tuple[str, str]]:
    return [joiner for joiner in await member_scopes.recent_joiners(conn, 1e6, 100) if joiner != ("default", "alice")]


async def memberships_of_bob(conn: Connection) -> list[bool]:
    return [found for found in await member_scopes.are_members(conn, [("default", "bob", "bobs")]) if found]


async def scopes_of_bob(conn: Connection) -> list[object]:
    ((found, _),) = await member_scopes.member_scopes(conn, [("default", "bob")])
    return list(found)


async def parts_of_feeds(conn: Connection) -> list[object]:
    (part,) = await changes.changes_between(conn, [changes.FeedRead("default", "bobs", "e", 0, 99, 10)], 1_000)
    return [] if part is None else [part.changes or part.pruned]


async def scopes_in_sight(conn: Connection) -> int:
    return (await epochs.extent(conn, None)).scopes


Attempt = Callable[[Connection], Awaitable[object]]
SEEN: dict[Callable[..., Any], Attempt] = {
    auth.has_sessions: lambda c: auth.has_sessions(c, "default", "bob"),
    user_rows.has_rows: lambda c: user_rows.has_rows(c, "default", "bob"),
    token_move_rows.lock_token: lambda c: token_move_rows.lock_token(c, "default", DIGEST),
    token_move_rows.release_token: lambda c: token_move_rows.release_token(c, "default", BOBS, DIGEST),
    devices.count_devices: lambda c: devices.count_devices(c, "default", "bob", ""),
    device_locks.lock_in_order: lambda c: device_locks.lock_in_order(c, ["default"], ["bob"], ["bobs phone"]),
    device_locks.lock_devices: lambda c: device_locks.lock_devices(c, "default", "bob", None),
    token_move_rows.lock_holders: lambda c: token_move_rows.lock_holders(c, REGISTRATION, b"digest"),
    devices.lock_registering: lambda c: devices.lock_registering(c, "default", "bob", "bobs"),
    devices.lock_erasing: lambda c: devices.lock_erasing(c, "default", "bob"),
    device_locks.delete_devices: lambda c: device_locks.delete_devices(c, "default", "bob", "bobs phone"),
    devices.find_device: lambda c: devices.find_device(c, "default", "bob", "bobs phone"),
    devices.list_devices: lambda c: devices.list_devices(c, "default", "bob", "", 10),
    members.known_scopes: lambda c: members.known_scopes(c, [("default", "bobs")]),
    members.present_members: lambda c: members.present_members(c, "default", [("bobs", "bob")]),
    members.count_members: lambda c: members.count_members(c, "default", "bobs"),
    members.count_scopes: lambda c: members.count_scopes(c, "default", ["bob"], 9),
    members.lock_memberships: lambda c: members.lock_memberships(c, "default"),
    members.list_members: lambda c: members.list_members(c, "default", "bobs", "", 10),
    members.list_scopes: lambda c: members.list_scopes(c, "default", "bob", "", 10),
    auth.revoke_session: lambda c: auth.revoke_session(c, "default", SESSION[0], "bob", "theft"),
    auth.list_sessions: lambda c: auth.list_sessions(c, "default", "bob", "", 10),
    auth.revoke_sessions: lambda c: auth.revoke_sessions(c, "default", "bob", "theft"),
    device_views.read_device_views: lambda c: device_views.read_device_views(c, [PHONE]),
    reported_activity.report_activity: lambda c: reported_activity.report_activity(
        c, [(PHONE, Activity(battery_low=True))]
    ),
    device_cursors.record_shown: lambda c: device_cursors.record_shown(c, [(PHONE, Cursor("bobs", "e", 1))]),
    device_cursors.record_fetched: lambda c: device_cursors.record_fetched(c, [(PHONE, Cursor("bobs", "e", 1))]),
    member_scopes.scope_states: lambda c: member_scopes.scope_states(
        c, [("default", None, "bobs"), ("default", "bob", "bobs")]
    ),
    changes.changes_between: parts_of_feeds,
    member_scopes.are_members: memberships_of_bob,
    member_scopes.member_scopes: scopes_of_bob,
    member_scopes.join_sequences: lambda c: member_scopes.join_sequences(c, "default", "bob", ["bobs"], 10.0),
    member_scopes.recent_joiners: others_who_joined,
    scopes.lock_scopes: lambda c: scopes.lock_scopes(c, [("default", "bobs"), ("default", "shared")], create=False),
    scopes.boost: lambda c: scopes.boost(c, "default", "bobs", Priority.FAST, 60.0),
    scopes.record_writer_presence: lambda c: scopes.record_writer_presence(
        c, [("default", "bob")], present=False, limit=9
    ),
    change_writes.oversized: lambda c: change_writes.oversized(c, WRITE),
    change_writes.key_sequences: lambda c: change_writes.key_sequences(c, [("default", "bobs", "k")]),
    change_writes.versions: lambda c: change_writes.versions(c, [("default", "bobs", "k")]),
    change_writes.rank_values: stored_ranks_of_bobs,
    change_writes.raise_source_times: lambda c: change_writes.raise_source_times(c, {("default", "bobs", "k"): EVER}),
    scopes.advance_heads: lambda c: scopes.advance_heads(c, [scopes.MovedScope("default", "bobs", 99, SIGNAL, ONCE)]),
}
REFUSED: dict[Callable[..., Any], Attempt] = {
    device_cursors.forget_left: lambda c: device_cursors.forget_left(c, 10),
    devices.upsert_device: lambda c: devices.upsert_device(c, REGISTRATION, None),
    token_move_rows.record_move: lambda c: token_move_rows.record_move(
        c, REGISTRATION, DIGEST, BOBS, "user:bob", refused=False
    ),
    token_move_rows.recent_moves: lambda c: token_move_rows.recent_moves(c, "default", DIGEST),
    scopes.drop_scopes: lambda c: scopes.drop_scopes(c, [("default", "bobs")]),
    members.add_members: lambda c: members.add_members(c, "default", "bobs", MEMBERS),
    members.remove_members: lambda c: members.remove_members(c, "default", "bobs", ["bob"]),
    members.erase_memberships: lambda c: members.erase_memberships(c, "default", "bob"),
    preferences.erase_traces: lambda c: preferences.erase_traces(c, "default", "bob"),
    auth.insert_session: lambda c: auth.insert_session(c, auth.NewSession("default", "bob", "", {}, 0, 60.0, 60.0)),
    auth.lock_session: lambda c: auth.lock_session(c, "default", SESSION[0]),
    auth.advance_counter: lambda c: auth.advance_counter(c, "default", SESSION[0], 60.0),
    auth.delete_sessions: lambda c: auth.delete_sessions(c, "default", "bob"),
    auth.delete_ended: lambda c: auth.delete_ended(c, "default", "bob", timedelta(0), 10),
    auth.delete_expired: lambda c: auth.delete_expired(c, 10),
    users.read_statuses: lambda c: users.read_statuses(c, [AccountKey("default", "bob", SESSION[0])]),
    identities.claim_ids: lambda c: identities.claim_ids(c, [BOBS_IDENTITY]),
    identities.find_identity: lambda c: identities.find_identity(c, BOBS_IDENTITY),
    identities.identities_of: lambda c: identities.identities_of(c, "default", "bob"),
    identities.find_aliased: lambda c: identities.find_aliased(c, "default", "bob"),
    identities.is_link_spent: lambda c: identities.is_link_spent(c, "default", "link"),
    identities.users_by_email: lambda c: identities.users_by_email(c, "default", "issuer", DIGEST),
    identities.insert_identity: lambda c: identities.insert_identity(c, BOBS_IDENTITY, "bob", LinkedBy.IMPORT),
    identities.move_identity: lambda c: identities.move_identity(c, BOBS_IDENTITY, "ann", LinkedBy.IMPORT, None),
    identities.forget_emails: lambda c: identities.forget_emails(c, "default", "bob"),
    users.lock_known: lambda c: users.lock_known(c, "default", ["bob"]),
    identities.import_states: lambda c: identities.import_states(c, "default", "issuer", ["bob"]),
    identities.import_identities: lambda c: identities.import_identities(c, "default", "issuer", {"bob": None}),
    users.insert_users: lambda c: users.insert_users(c, [("default", "carl")]),
    auth.confirm_counters: lambda c: auth.confirm_counters(c, [("default", SESSION[0], 0)]),
    users.enable_user: lambda c: users.enable_user(c, "default", "bob"),
    users.lock_user: lambda c: users.lock_user(c, "default", "bob"),
    users.lock_users: lambda c: users.lock_users(c, "default", ["bob"]),
    event_batches.look_up: lambda c: event_batches.look_up(c, [BOBS_EVENT], [BOBS_ORDER]),
    event_batches.write_batch: lambda c: event_batches.write_batch(c, BatchWrites(repetitions={BOBS_EVENT: 1}), 60.0),
    event_rows.find_order: lambda c: event_rows.find_order(c, BOBS_EVENT),
    event_rows.lock_event: lambda c: event_rows.lock_event(c, BOBS_EVENT),
    event_rows.conclude: lambda c: event_rows.conclude(c, BOBS_EVENT, Conclusion(EventState.ACCEPTED, 1)),
    event_rows.count_repetition: lambda c: event_rows.count_repetition(c, BOBS_EVENT),
    event_rows.claim_due: lambda c: event_rows.claim_due(c, 10, 60.0),
    event_rows.oldest_waiting_s: event_rows.oldest_waiting_s,
    event_rows.find_event: lambda c: event_rows.find_event(c, BOBS_EVENT),
    event_rows.list_events: lambda c: event_rows.list_events(c, "default", EventFilter(), LIST_START, 10),
    old_events.delete_events: lambda c: old_events.delete_events(c, 30, 10, None),
    old_events.delete_heads: lambda c: old_events.delete_heads(c, 30, 10, None),
    audit.insert_entry: lambda c: audit.insert_entry(c, BOBS_ENTRY),
    audit.list_entries: lambda c: audit.list_entries(c, ["default"], AuditFilter(), None, 10),
    audit.seen_apps: audit.seen_apps,
    audit.delete_old: lambda c: audit.delete_old(c, 365, 10, None),
    users.revoke_user: lambda c: users.revoke_user(c, "default", "bob", ""),
    users.disable_user: lambda c: users.disable_user(c, "default", "bob"),
    user_tiers.find_tier: lambda c: user_tiers.find_tier(c, "default", "bob"),
    user_tiers.set_tier: lambda c: user_tiers.set_tier(c, "default", "bob", "pro"),
    user_tiers.clear_tier: lambda c: user_tiers.clear_tier(c, "default", "bob"),
    quota_usage.read_usage: lambda c: quota_usage.read_usage(c, [BOBS_QUOTA]),
    quota_usage.add_usage: lambda c: quota_usage.add_usage(c, {BOBS_QUOTA: 1}),
    quota_usage.erase_usage: lambda c: quota_usage.erase_usage(c, "default", "bob"),
    quota_usage.delete_old: lambda c: quota_usage.delete_old(c, 10, None),
    users.mark_deleted: lambda c: users.mark_deleted(c, "default", "bob"),
    change_writes.write_changes: lambda c: change_writes.write_changes(c, WRITE),
    push.insert_notifications: lambda c: push.insert_notifications(c, [NOTIFICATION], {}),
    push.insert_deliveries: lambda c: push.insert_deliveries(c, [NOTIFICATION]),
    dedupe_windows.delete_windows: lambda c: dedupe_windows.delete_windows(c, "default", "bob", None),
    dedupe_windows.lock_targeted: lambda c: dedupe_windows.lock_targeted(c, [ALERT]),
    dedupe_windows.write_alert_windows: lambda c: dedupe_windows.write_alert_windows(
        c, {WINDOW: dedupe_windows.AlertWindow(True, EVER)}
    ),
    dedupe_windows.read_alert_windows: lambda c: dedupe_windows.read_alert_windows(c, [WINDOW]),
    dedupe_windows.cancel: lambda c: dedupe_windows.cancel(c, "default", IDS[2], IDS[:1]),
    lifecycle.cancel_waiting: lambda c: lifecycle.cancel_waiting(c, "default", "bob", None, Reason.DEVICE_GONE),
    user_erasure.erase_user: lambda c: user_erasure.erase_user(c, "default", "bob"),
    collapse_keys.keep_order: lambda c: collapse_keys.keep_order(c, [CLAIMED]),
    queue.is_still_wanted: lambda c: queue.is_still_wanted(c, CLAIMED),
    push.stored_texts: lambda c: push.stored_texts(c, CLAIMED),
    push.find_notification: lambda c: push.find_notification(c, "default", IDS[2]),
    push.list_deliveries: lambda c: push.list_deliveries(c, "default", DeliveryFilter(), None, 10),
    queue.claim: lambda c: queue.claim(c, IDS[1], 30.0, {"default": 10}),
    dedupe_windows.lock_trailed: lambda c: dedupe_windows.lock_trailed(c, IDS[1], [("default", IDS[0])]),
    dedupe_windows.close_trailed: lambda c: dedupe_windows.close_trailed(c, IDS[1], [("default", IDS[0])]),
    alerts.insert: lambda c: alerts.insert(c, [ALERT]),
    dedupe_windows.close_alerts: lambda c: dedupe_windows.close_alerts(c, IDS[1], [("default", IDS[0])], [WINDOW]),
    alerts.merge_held: lambda c: alerts.merge_held(c, [CLAIMED]),
    queue.read_claimed: lambda c: queue.read_claimed(c, IDS[1], [("default", IDS[0])]),
    queue.finish: lambda c: queue.finish(c, [DeliveryUpdate(CLAIMED, DeliveryState.SENT, Reason.NONE)]),
    queue.extend: lambda c: queue.extend(c, IDS, 30.0),
    queue.rescue: lambda c: queue.rescue(c, 10),
    queue.release: lambda c: queue.release(c, IDS),
    push.list_changed: lambda c: push.list_changed(c, "default", DeliveryFilter(user_id="bob"), None, 10),
    app_secrets.read_or_create: lambda c: app_secrets.read_or_create(c, "default"),
    lifecycle.acknowledge: lambda c: lifecycle.acknowledge(c, "default", IDS[0], opened=True),
    lifecycle.cancel: lambda c: lifecycle.cancel(c, "default", IDS[2]),
    lifecycle.redrive: lambda c: lifecycle.redrive(c, "default", DeliveryFilter()),
    lifecycle.forget_notifications: lambda c: lifecycle.forget_notifications(c, 1.0, 10),
    dedupe_windows.forget: lambda c: dedupe_windows.forget(c, 10),
    queue_figures.count_unaccounted: lambda c: queue_figures.count_unaccounted(c, timedelta(days=1), 10),
    queue_figures.count_waiting: queue_figures.count_waiting,
    queue_figures.queue_depth: lambda c: queue_figures.queue_depth(c, "default", 10, 10),
    process_rows.write_row: lambda c: process_rows.write_row(c, "host:1:a", "{}"),
    process_rows.read_rows: lambda c: process_rows.read_rows(c, 30.0, 10),
    process_rows.delete_row: lambda c: process_rows.delete_row(c, "host:1:a"),
    process_rows.delete_old: lambda c: process_rows.delete_old(c, 10, None),
    slo_counts.add: lambda c: slo_counts.add(c, {"calls": (1.0,)}, 0.0, SloTimes()),
    slo_counts.sums: lambda c: slo_counts.sums(c, [Window(60.0, 60)]),
    slo_counts.counted_since_s: lambda c: slo_counts.counted_since_s(c, 60),
    slo_counts.has_new_deadlocks: slo_counts.has_new_deadlocks,
    slo_counts.take_deadlocks: slo_counts.take_deadlocks,
    slo_counts.delete_old: lambda c: slo_counts.delete_old(c, 10, None),
    slo_figures.put: lambda c: slo_figures.put(c, "complaints", 1.0),
    slo_figures.read: lambda c: slo_figures.read(c, 60.0, ["complaints"]),
    slo_figures.delete_old: lambda c: slo_figures.delete_old(c, 10, None),
    fanout.insert_jobs: lambda c: fanout.insert_jobs(c, [NOTIFICATION], [1]),
    fanout.lock_next_pages: lambda c: fanout.lock_next_pages(c, ["default"]),
    fanout.write_pages: lambda c: fanout.write_pages(c, [Page(NOTIFICATION, ("", ""), last=True)]),
    fanout.cancel_unwritten: lambda c: fanout.cancel_unwritten(c, "default", IDS[2]),
    fanout.count_unfit: lambda c: fanout.count_unfit(c, "default", {}),
    fanout.count_deferred: lambda c: fanout.count_deferred(c, [NOTIFICATION]),
    daily_maximum.count_shown: lambda c: daily_maximum.count_shown(c, [(CLAIMED, 1, EVER)]),
    wake_budgets.spend_wake_budgets: lambda c: wake_budgets.spend_wake_budgets(c, [CLAIMED]),
    wake_budgets.merge_held: lambda c: wake_budgets.merge_held(c, [CLAIMED]),
    dead_token_removal.remove_dead_tokens: lambda c: dead_token_removal.remove_dead_tokens(c, [CLAIMED.token_use]),
    token_move_rows.forget_moves: lambda c: token_move_rows.forget_moves(c, 10),
    preferences.add_preferences: lambda c: preferences.add_preferences(c, "default", "bob", Preferences()),
    imports.begin_import: lambda c: imports.begin_import(c, BOBS_IMPORT, "x", "{}"),
    preferences.set_preferences: lambda c: preferences.set_preferences(c, "default", "bob", Preferences()),
    dead_token_removal.forget_removals: lambda c: dead_token_removal.forget_removals(c, 10),
    idempotency.answer_once: lambda c: idempotency.answer_once(c, [REQUEST], no_answers),
    idempotency.claim: lambda c: idempotency.claim(c, [REQUEST]),
    idempotency.release: lambda c: idempotency.release(c, [REQUEST]),
    publish_batches.claim_and_lock: lambda c: publish_batches.claim_and_lock(
        c, [REQUEST], [("default", "bobs")], create=False
    ),
    publish_batches.write_and_answer: lambda c: publish_batches.write_and_answer(
        c, WRITE, [scopes.MovedScope("default", "bobs", 99, SIGNAL, ONCE)], [(REQUEST, "{}")]
    ),
    publish_batches.write_beside: lambda c: publish_batches.write_beside(
        c,
        WRITE,
        [scopes.MovedScope("default", "bobs", 99, SIGNAL, ONCE)],
        publish_batches.Beside("other AS (SELECT 1) SELECT * FROM other", []),
    ),
    idempotency.forget_caller: lambda c: idempotency.forget_caller(c, "default", "user:bob"),
    idempotency.forget_old: lambda c: idempotency.forget_old(c, 10),
}
SEEN[devices.report_activity] = lambda c: devices.report_activity(c, {PHONE: "{}"})
SEEN[devices.count_wake_ups] = lambda c: devices.count_wake_ups(c, {PHONE: (1.0, 0.0)})
SEEN[idempotency.claimed_requests] = answer_to_bob
SEEN[invalidations.current_heads] = lambda c: invalidations.current_heads(c, [("default", "bobs")])
SEEN[invalidations.recent_heads] = lambda c: invalidations.recent_heads(c, ["default", "other"], 1e6, 10)
REFUSED[device_cursors.forget_left] = lambda c: device_cursors.forget_left(c, 10)
REFUSED[device_locks.lock_keys] = lambda c: device_locks.lock_keys(c, "default", "bob", "bobs phone")
REFUSED[restore_detection.lineage] = restore_detection.lineage
REFUSED[restore_detection.begin_feed_generation] = restore_detection.begin_feed_generation
SEEN[change_writes.value_of] = lambda c: change_writes.value_of(c, "default", "bobs", "k")
SEEN[change_writes.octets_of] = lambda c: change_writes.octets_of(c, [("default", "bobs", "k")])
SEEN[epochs.extent] = scopes_in_sight
SEEN[epochs.lock_page] = lambda c: epochs.lock_page(c, None, ("", ""), 10, 250)
SEEN[epochs.renew] = lambda c: epochs.renew(c, [("default", "bobs")])
SEEN[epochs.foreign_apps] = lambda c: epochs.foreign_apps(c, "3", None)
SEEN[epochs.forget_foreign_transactions] = lambda c: epochs.forget_foreign_transactions(c, "3", "default", ("", ""), 10)
REFUSED[epochs.next_transaction] = epochs.next_transaction
REFUSED[epochs.forget_pruned_tombstones] = epochs.forget_pruned_tombstones
REFUSED[invalidations.invalidations_since] = lambda c: invalidations.invalidations_since(c, "3", 10)
REFUSED[tombstones.remove_old] = lambda c: tombstones.remove_old(c, 0.0, 10)
REFUSED[firehose_pages.current_feed] = lambda c: firehose_pages.current_feed(c, "default")
REFUSED[firehose_pages.next_page] = lambda c: firehose_pages.next_page(
    c, "default", FeedPosition("", None), in_order=True
)
REFUSED[invalidations.delete_touches] = lambda c: invalidations.delete_touches(c, 0.0, 10)
SEEN[dead_token_removal.lock_devices] = lambda c: dead_token_removal.lock_devices(c, [CLAIMED.token_use], [])
SEEN[dead_token_removal.quarantine] = lambda c: dead_token_removal.quarantine(c, [CLAIMED.token_use])
SEEN[token_ageing.age_tokens] = lambda c: token_ageing.age_tokens(c, 10)
SEEN[preferences.find_preferences] = lambda c: preferences.find_preferences(c, "default", "bob")
REFUSED[device_cursors.forget_left] = lambda c: device_cursors.forget_left(c, 10)
SEEN[server_connections.count_by_state] = server_connections.count_by_state
SEEN[imports.look_up_by_index] = imports.look_up_by_index
REFUSED[imports.find_import] = lambda c: imports.find_import(c, BOBS_IMPORT)
REFUSED[imports.advance_import] = lambda c: imports.advance_import(c, BOBS_IMPORT, 0, 1, "{}")
REFUSED[imports.finish_import] = lambda c: imports.finish_import(c, BOBS_IMPORT, 0, "{}")
SEEN[audit.lock_configuration] = audit.lock_configuration
