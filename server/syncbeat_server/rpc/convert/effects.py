"""Converts the effects of an event, and finds what is wrong with them together."""

from __future__ import annotations

from collections.abc import Mapping

from syncbeat.v1 import core_pb2
from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.events.model import (
    Effects,
    MemberEffect,
    NotificationEffect,
    TierEffect,
    UserAction,
    UserEffect,
)
from syncbeat_server.push.content.templates import Template
from syncbeat_server.push.model import DEFAULT_TTL_S, Lane, Target
from syncbeat_server.rpc.convert.directory import scope_members
from syncbeat_server.rpc.convert.fields import enum_member, seconds
from syncbeat_server.rpc.convert.notification import content
from syncbeat_server.rpc.convert.sync import MAX_PUBLISH_BYTES, new_changes, sync_trigger

_DEFAULT_WINDOW_S = 300.0
_MAX_MEMBERS = 1_000


def effects(given: pb.EventEffects, templates: Mapping[str, Template]) -> Effects:
    """Return the effects of a request.

    Raises:
        InvalidRequest: with every fault of the changes, members and the notification, or of what the trigger shows.
    """
    faults: list[FieldViolation] = []
    changes = new_changes(given.changes, "effects.changes", faults)
    members = _members(given, faults)
    notification = _notification(given, templates, faults)
    if given.HasField("trigger") and not changes:
        faults.append(FieldViolation("effects.trigger", "only with changes", FieldReason.CONFLICT))
    if given.ByteSize() > MAX_PUBLISH_BYTES:
        faults.append(FieldViolation("effects", f"at most {MAX_PUBLISH_BYTES} bytes in all", FieldReason.TOO_LONG))
    if faults:
        raise InvalidRequest(*faults)
    trigger = None
    if given.HasField("trigger"):
        trigger = sync_trigger(given.trigger, templates, None, "effects.trigger")
    return Effects(
        users=tuple(UserEffect(one.user_id, _action(one)) for one in given.users),
        members=members,
        tiers=tuple(TierEffect(one.user_id, one.tier) for one in given.tiers),
        changes=changes,
        trigger=trigger,
        notification=notification,
    )


def _action(given: pb.UserEffect) -> UserAction:
    action = enum_member(UserAction, pb.UserAction, "USER_ACTION_", given.action)
    if action is None:
        raise AssertionError("the contract requires an action")
    return action


def _members(given: pb.EventEffects, faults: list[FieldViolation]) -> tuple[MemberEffect, ...]:
    found = tuple(
        MemberEffect(one.scope, tuple(scope_members(one.scope, one.add)), tuple(one.remove_user_ids))
        for one in given.members
    )
    if sum(len(one.add) + len(one.remove) for one in found) > _MAX_MEMBERS:
        faults.append(FieldViolation("effects.members", f"at most {_MAX_MEMBERS} users in all", FieldReason.TOO_MANY))
    return found


def _notification(
    given: pb.EventEffects, templates: Mapping[str, Template], faults: list[FieldViolation]
) -> NotificationEffect | None:
    target = given.WhichOneof("target")
    if not given.HasField("notification"):
        if target is not None:
            faults.append(FieldViolation(f"effects.{target}", "only with a notification", FieldReason.CONFLICT))
        return None
    shown = content(given.notification, "effects.notification", templates, faults)
    if not (shown.visible or shown.data or shown.badge_only):
        fault = "want a title, a body, a template, data or a badge"
        faults.append(FieldViolation("effects.notification", fault, FieldReason.REQUIRED))
    if target is None:
        faults.append(FieldViolation("effects.target", "required with a notification", FieldReason.REQUIRED))
    elif target == "scope" and not given.scope:
        faults.append(FieldViolation("effects.scope", "required", FieldReason.REQUIRED))
    lane = enum_member(Lane, core_pb2.PushPriority, "PUSH_PRIORITY_", given.priority)
    return NotificationEffect(
        content=shown,
        targets=_targets(given),
        type=given.notification_type,
        dedupe_key=given.dedupe_key,
        dedupe_window_s=seconds(given.dedupe_window) if given.HasField("dedupe_window") else _DEFAULT_WINDOW_S,
        collapse_key=given.collapse_key,
        lane=Lane.NORMAL if lane is None else lane,
        critical=given.critical,
        ttl_s=seconds(given.ttl) if given.HasField("ttl") else DEFAULT_TTL_S,
        patient=not given.HasField("ttl"),
    )


def _targets(given: pb.EventEffects) -> tuple[Target, ...]:
    match given.WhichOneof("target"):
        case "user_ids":
            return tuple(Target(user_id=user_id) for user_id in given.user_ids.ids)
        case "device_ids":
            return tuple(Target(user_id=ref.user_id, device_id=ref.device_id) for ref in given.device_ids.refs)
        case _:
            return (Target(scope=given.scope),)
