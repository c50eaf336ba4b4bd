"""Carries the effects of one event out in the caller's transaction, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from syncbeat_server.audit.record import record_grant
from syncbeat_server.auth.accounts import user_access
from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.directory.service import existing_scopes, join_scope, leave_scope
from syncbeat_server.errors import NotFound, SyncbeatError
from syncbeat_server.events.model import EffectResult, Effects, MemberEffect, NotificationEffect, UserAction
from syncbeat_server.events.user_lifecycle import delete_user, disable_user, enable_user
from syncbeat_server.ops.tracing.spans import current_traceparent
from syncbeat_server.push.accept import accept, new_notification_id
from syncbeat_server.push.model import Kind, NewNotification
from syncbeat_server.ratelimit.model import TierPolicy
from syncbeat_server.ratelimit.user_tiers import check_tier, grant_tier
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline
from syncbeat_server.storage.postgres.database import Connection
from syncbeat_server.sync.feed.writer import NOTHING_APPENDED, Append, AppendResult, append, lock_in_order, lock_scope
from syncbeat_server.sync.model import Cursor
from syncbeat_server.sync.policy import Prior
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder


@dataclass(frozen=True, slots=True)
class EffectRules:
    """Holds what effects go by: an app's prior and tiers; `offload` runs merges of large values."""

    prior: Callable[[str], Prior]
    policy_of: Callable[[str], TierPolicy]
    clock: Clock
    offload: RunInWorker = run_inline


@dataclass(frozen=True, slots=True)
class Notices:
    """Names what is to be told to processes and streams after the commit of an event's effects."""

    app_id: str
    callers: Sequence[str] = ()
    members: Sequence[str] = ()
    heads: Sequence[Cursor] = ()
    deliveries: bool = False


@dataclass(slots=True)
class _Told:
    callers: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)


async def carry_out(
    conn: Connection, app_id: str, caller: str, effects: Effects, rules: EffectRules
) -> tuple[EffectResult, Notices]:
    """Carry out all effects, or raise; then the caller rolls back to where it was before.

    Users, and scopes, are locked by name ahead, so that two events that concern the same ones wait for each other
    instead of deadlocking. Members change in the order given: who is to leave a scope first makes room.

    Raises:
        SyncbeatError: as the RPCs that the effects stand for.
    """
    told = _Told()
    await _lock_ahead(conn, app_id, effects)
    await _change_users(conn, app_id, effects, told)
    for member in effects.members:
        await _change_members(conn, app_id, member, told)
    for tier in sorted(effects.tiers, key=lambda one: one.user_id):
        check_tier(rules.policy_of(app_id), tier.tier)
        await grant_tier(conn, app_id, tier.user_id, tier.tier)
        await record_grant(conn, app_id, tier.user_id, tier.tier)
        told.callers.append(tier.user_id)
    appended = await _append(conn, app_id, effects, rules)
    moved = appended.moved
    now = rules.clock.now()
    accepted: list[NewNotification] = []
    if effects.trigger is not None and moved:
        accepted.append(effects.trigger.wake_up(app_id, caller, moved, new_notification_id(now)))
    if effects.notification is not None:
        await _require_scopes(conn, app_id, effects.notification)
        notification_id = new_notification_id(now)
        accepted.append(notification_of(app_id, caller, effects.notification, notification_id, current_traceparent()))
    await accept(conn, accepted)
    result = EffectResult(
        appended.heads,
        accepted[0].notification_id if effects.trigger is not None and moved else "",
        accepted[-1].notification_id if effects.notification is not None else "",
    )
    return result, Notices(app_id, told.callers, told.members, moved, deliveries=bool(accepted))


def notification_of(
    app_id: str, caller: str, effect: NotificationEffect, notification_id: str, traceparent: str
) -> NewNotification:
    """Return the notification of an effect under an id, for the call of a traceparent."""
    return NewNotification(
        app_id=app_id,
        notification_id=notification_id,
        kind=Kind.MESSAGE,
        caller=caller,
        content=effect.content,
        targets=effect.targets,
        type=effect.type,
        dedupe_key=effect.dedupe_key,
        dedupe_window_s=effect.dedupe_window_s,
        collapse_key=effect.collapse_key,
        lane=effect.lane,
        critical=effect.critical,
        ttl_s=effect.ttl_s,
        patient=effect.patient,
        traceparent=traceparent,
    )


def announce(notices: Sequence[Notices], notifier: ChangeNotifier, recorder: HintRecorder, clock: Clock) -> None:
    """Tell all processes of what was committed, so that caches and streams read again and workers look."""
    now = clock.now().timestamp()
    for told in notices:
        for user_id in dict.fromkeys(told.callers):
            notifier.caller_changed(told.app_id, user_id)
        if told.members:
            notifier.members_changed(told.app_id, list(dict.fromkeys(told.members)))
        for head in told.heads:
            recorder.record_change(told.app_id, head.scope, now)
            notifier.scope_changed(told.app_id, head.scope)
    if any(told.deliveries for told in notices):
        notifier.deliveries_accepted()


async def _lock_ahead(conn: Connection, app_id: str, effects: Effects) -> None:
    """Lock users and scopes before deliveries, which disabling and deleting users lock (ADR 66)."""
    created = {one.scope for one in effects.members if one.add} | {change.scope for change in effects.changes}
    left = {(app_id, one.scope) for one in effects.members} - {(app_id, name) for name in created}
    if len(effects.users) > 1 or (effects.users and (created or left)):
        await user_access.lock(conn, app_id, [one.user_id for one in effects.users])
    if effects.members or (effects.users and created):
        there = await existing_scopes(conn, left)  # those that users only leave are not made for it
        await lock_in_order(conn, app_id, created, [name for _, name in there])


async def _change_users(conn: Connection, app_id: str, effects: Effects, told: _Told) -> None:
    for effect in sorted(effects.users, key=lambda one: one.user_id):
        match effect.action:
            case UserAction.ENSURE:
                await user_access.ensure(conn, app_id, [effect.user_id])
            case UserAction.ENABLE:
                await enable_user(conn, app_id, effect.user_id)
            case UserAction.DISABLE:
                await disable_user(conn, app_id, effect.user_id)
            case UserAction.DELETE:
                await delete_user(conn, app_id, effect.user_id)
        told.callers.append(effect.user_id)


async def _change_members(conn: Connection, app_id: str, effect: MemberEffect, told: _Told) -> None:
    added = {member.user_id for member in effect.add}
    removed = sorted(set(effect.remove) - added)
    if removed:
        with suppress(NotFound):  # a scope that is not there has no members: what the event states is so
            await leave_scope(conn, app_id, effect.scope, removed)
    if effect.add:
        await join_scope(conn, lock_scope, app_id, effect.scope, sorted(effect.add, key=lambda one: one.user_id))
    told.members += [*added, *removed]


async def _append(conn: Connection, app_id: str, effects: Effects, rules: EffectRules) -> AppendResult:
    """Write the changes, if there are any."""
    if not effects.changes:
        return NOTHING_APPENDED
    call = Append(app_id, effects.changes, effects.trigger is not None)
    (appended,) = await append(conn, [call], rules.prior, create_scopes=True, offload=rules.offload)
    if isinstance(appended, SyncbeatError):
        raise appended
    return appended


async def _require_scopes(conn: Connection, app_id: str, effect: NotificationEffect) -> None:
    wanted = {(app_id, target.scope) for target in effect.targets if target.scope is not None}
    if not wanted <= await existing_scopes(conn, wanted):
        raise NotFound("there is no such scope")
