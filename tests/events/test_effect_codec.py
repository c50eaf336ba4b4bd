"""Effects of failed events are read again as they were stored."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from syncbeat_server.directory.model import Member, MemberRole
from syncbeat_server.events.effect_codec import effects_json, effects_of
from syncbeat_server.events.model import (
    NO_EFFECTS,
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

pytestmark = pytest.mark.unit

_SHOWN = Content(
    title="Paid", data={"order": "7"}, badge=2, template="paid", variables={"name": "A"}, texts={"de": ("Bezahlt", "")}
)
_ALL = Effects(
    users=(UserEffect("alice", UserAction.ENSURE), UserEffect("bob", UserAction.DELETE)),
    members=(MemberEffect("team", (Member("team", "alice", MemberRole.WRITER),), ("bob", "carol")),),
    tiers=(TierEffect("alice", "pro"), TierEffect("bob", "")),
    changes=(
        NewChange("team", "plan", '{"a":1}', expected_sequence=3),
        NewChange("team", "old", "", deleted=True, source_time=datetime(2030, 1, 1, 12, 0, 0, 123_456, UTC)),
    ),
    trigger=Trigger("paid", "alice", "phone", _SHOWN, 30.0, "alice"),
    notification=NotificationEffect(
        _SHOWN, (Target(user_id="alice", device_id="phone"), Target(scope="team")), "billing", "k", 60.0, "c", Lane.HIGH
    ),
)


@pytest.mark.parametrize("effects", [NO_EFFECTS, _ALL])
def test_stored_effects_are_read_as_they_were(effects: Effects) -> None:
    read = effects_of(effects_json(effects))

    assert read == effects
    shown = [one.content.texts for one in (read.trigger, read.notification) if one is not None]
    assert shown == [one.content.texts for one in (effects.trigger, effects.notification) if one is not None]


def test_stored_effects_without_source_times_are_as_versions_before_wrote_them() -> None:
    stored = effects_json(Effects(changes=(NewChange("team", "plan", "{}"),)))
    assert orjson.loads(stored)["changes"] == [["team", "plan", "{}", False, None]]
    assert "source_times" not in stored
