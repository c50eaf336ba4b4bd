"""Requests of EventService, as short as its tests need them, and what they look for in the answers."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from syncbeat.v1 import core_pb2, directory_service_pb2
from syncbeat.v1 import event_service_pb2 as pb

SOURCE = "billing"
BEGAN_S = 1_790_000_000
"""The second from which tests count when their events occurred."""

TIERS = """
[apps.default.tiers.free.principal.hint]
per_second = 1000
[apps.default.tiers.pro.principal.hint]
per_second = 2000
"""


def moment(seconds: float) -> Timestamp:
    """So many seconds after the beginning."""
    made = Timestamp()
    made.FromMicroseconds(round((BEGAN_S + seconds) * 1_000_000))
    return made


def event(event_id: str, effects: pb.EventEffects | None = None, **fields: Any) -> pb.IngestEventRequest:
    """An event; `at` is when it occurred, in seconds after the beginning."""
    at = fields.pop("at", None)
    given = {"source": SOURCE, "type": "test", "occurred_time": None if at is None else moment(at), **fields}
    return pb.IngestEventRequest(event_id=event_id, effects=effects, **given)


def change(scope: str, value: object, key: str = "state", **fields: Any) -> core_pb2.NewChange:
    """A change of a scope's key."""
    return core_pb2.NewChange(scope=scope, key=key, merge_patch_json=orjson.dumps(value).decode(), **fields)


def user(user_id: str, action: str = "ENSURE") -> pb.UserEffect:
    """Something that is done to a user."""
    return pb.UserEffect(user_id=user_id, action=pb.UserAction.Value(f"USER_ACTION_{action}"))


def member(scope: str, *added: str, role: str = "WRITER", remove: tuple[str, ...] = ()) -> pb.MemberEffect:
    """Users who join a scope, and who leave it."""
    number = directory_service_pb2.Role.Value(f"ROLE_{role}")
    members = [directory_service_pb2.ScopeMember(user_id=one, role=number) for one in added]
    return pb.MemberEffect(scope=scope, add=members, remove_user_ids=remove)


def everything(name: str, **fields: Any) -> pb.EventEffects:
    """One effect of every kind on a user and a scope of this name; `fields` are others, or in place of these."""
    given: dict[str, Any] = {
        "users": [user(name)],
        "members": [member(name, name, "watcher")],
        "tiers": [pb.TierEffect(user_id=name, tier="pro")],
        "changes": [change(name, {"by": name})],
        "trigger": core_pb2.SyncTrigger(type="paid"),
        "notification": core_pb2.Notification(title="Thank you"),
        "user_ids": core_pb2.UserIds(ids=[name]),
        **fields,
    }
    return pb.EventEffects(**given)


def told(answer: Any) -> tuple[str, str]:
    """The receipt's state, and what the event is now, without their prefixes."""
    receipt = answer.receipt
    return named(receipt.state), named(receipt.event_state)


def named(state: int) -> str:
    """A state without its prefix."""
    return pb.EventState.Name(state).removeprefix("EVENT_STATE_")  # type: ignore[arg-type]  # a number off the wire


async def effects_of(url: str, name: str) -> dict[str, Any]:
    """Return what stands in the database of the effects of `everything(name)`."""
    conn = await asyncpg.connect(url)
    try:
        row = await conn.fetchrow(
            """SELECT (SELECT count(*) FROM users WHERE user_id = $1) AS users,
                      (SELECT array_agg(user_id ORDER BY user_id) FROM scope_members WHERE scope = $1) AS members,
                      (SELECT array_agg(tier) FROM user_tiers WHERE user_id = $1) AS tiers,
                      (SELECT head FROM scopes WHERE scope = $1) AS head,
                      (SELECT array_agg(value::text) FROM changes WHERE scope = $1) AS values,
                      (SELECT count(*) FROM notifications n WHERE n.kind = 'MESSAGE' AND EXISTS (
                          SELECT FROM deliveries d WHERE d.notification_id = n.notification_id AND d.user_id = $1)
                      ) AS messages,
                      (SELECT count(*) FROM notifications n WHERE n.kind = 'SYNC' AND EXISTS (
                          SELECT FROM deliveries d WHERE d.notification_id = n.notification_id AND d.scope = $1)
                      ) AS triggers""",
            name,
        )
        assert row is not None
        return dict(row)
    finally:
        await conn.close()


def done_once(name: str) -> dict[str, Any]:
    """Return what `effects_of` finds when `everything(name)` was carried out once on a user with a device."""
    return {
        "users": 1,
        "members": sorted([name, "watcher"]),
        "tiers": ["pro"],
        "head": 1,
        "values": [f'{{"by": "{name}"}}'],
        "messages": 1,
        "triggers": 1,
    }


NOT_DONE: dict[str, Any] = {
    "users": 0,
    "members": None,
    "tiers": None,
    "head": None,
    "values": None,
    "messages": 0,
    "triggers": 0,
}
"""Result of `effects_of` for effects that were not carried out."""
