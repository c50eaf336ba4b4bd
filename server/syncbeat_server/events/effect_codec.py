"""Stores the effects of a FAILED event as JSON, and reads them again for its next attempt."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import orjson

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.events.model import (
    Effects,
    MemberEffect,
    NotificationEffect,
    TierEffect,
    UserAction,
    UserEffect,
)
from syncbeat_server.events.trigger import Trigger
from syncbeat_server.push.model import Content, Lane, Target
from syncbeat_server.sync.model import NewChange


def effects_json(effects: Effects) -> str:
    """Return effects as JSON. Names that are the same in each entry are left to their order, to keep it small."""
    # Apart from the changes, which versions before read without them.
    source_times = {
        str(place): one.source_time.isoformat()
        for place, one in enumerate(effects.changes)
        if one.source_time is not None
    }
    return orjson.dumps(
        {
            "users": [(one.user_id, one.action) for one in effects.users],
            "members": [
                (one.scope, [(member.user_id, member.role) for member in one.add], one.remove)
                for one in effects.members
            ],
            "tiers": [(one.user_id, one.tier) for one in effects.tiers],
            "changes": [
                (one.scope, one.key, one.merge_patch_json, one.deleted, one.expected_sequence)
                for one in effects.changes
            ],
            "trigger": None if effects.trigger is None else _trigger_fields(effects.trigger),
            "notification": None if effects.notification is None else asdict(effects.notification),
            **({"source_times": source_times} if source_times else {}),
        }
    ).decode()


def effects_of(text: str) -> Effects:
    """Return the effects that `effects_json` wrote; what an earlier version did not write has its default."""
    stored: dict[str, Any] = orjson.loads(text)
    return Effects(
        users=tuple(UserEffect(user_id, UserAction(action)) for user_id, action in stored["users"]),
        members=tuple(
            MemberEffect(
                scope, tuple(Member(scope, user_id, MemberRole(role)) for user_id, role in added), tuple(removed)
            )
            for scope, added, removed in stored["members"]
        ),
        tiers=tuple(TierEffect(user_id, tier) for user_id, tier in stored["tiers"]),
        changes=_changes(stored["changes"], stored.get("source_times", {})),
        trigger=_trigger(stored["trigger"]),
        notification=_notification(stored["notification"]),
    )


def _changes(stored: list[Any], source_times: dict[str, str]) -> tuple[NewChange, ...]:
    changes = [NewChange(*change) for change in stored]
    for place, source_time in source_times.items():
        changes[int(place)] = replace(changes[int(place)], source_time=datetime.fromisoformat(source_time))
    return tuple(changes)


def _trigger_fields(trigger: Trigger) -> dict[str, Any]:
    # Retries, hours later perhaps, are not of the call's trace; and versions before do not know the field.
    fields = asdict(trigger)
    del fields["traceparent"]
    return fields


def _trigger(stored: dict[str, Any] | None) -> Trigger | None:
    return None if stored is None else Trigger(**(stored | {"content": _content(stored["content"])}))


def _notification(stored: dict[str, Any] | None) -> NotificationEffect | None:
    if stored is None:
        return None
    read = {
        "content": _content(stored["content"]),
        "targets": tuple(Target(**target) for target in stored["targets"]),
        "lane": Lane(stored["lane"]),
    }
    return NotificationEffect(**(stored | read))


def _content(stored: dict[str, Any]) -> Content:
    texts = {locale: (title, body) for locale, (title, body) in stored["texts"].items()}
    return Content(**(stored | {"texts": texts}))
