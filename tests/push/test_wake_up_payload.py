"""Tests the payload of a wake-up: its scope, and the others whose wake-ups FCM may have dropped for it."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from syncbeat_devtools.fake_fcm.message.parser import parse_message
from syncbeat_server.push.model import ClaimedDelivery, Content, Kind
from syncbeat_server.push.providers import Message
from syncbeat_server.push.providers.fcm.message import Encoder
from tests.support.claimed_delivery import MESSAGE

pytestmark = pytest.mark.unit

WAKE = replace(MESSAGE, kind=Kind.SYNC, scope="a", epoch="e", sequence=7)


def encoded(delivery: ClaimedDelivery, content: Content) -> dict[str, dict[str, str]]:
    body = Encoder().encode(Message(delivery, content, "ack"))
    parse_message(body)
    message: dict[str, dict[str, str]] = orjson.loads(body)["message"]
    return message


@pytest.mark.parametrize(
    ("others", "content", "told"),
    [
        ((), Content(), None),
        (("b", 'quo"te', "ünï"), Content(), '["b","quo\\"te","ünï"]'),
        (tuple(f"s{n}" for n in range(30)), Content(), orjson.dumps([f"s{n}" for n in range(30)]).decode()),
        (tuple(f"s{n}" for n in range(31)), Content(), "*"),
        (("x" * 128,) * 8, Content(), "*"),
        (("b",), Content(data={"k": "v"}), "*"),
        (("b",), Content(title="t"), "*"),
        ((), Content(title="t"), None),
    ],
)
def test_wake_up_payload_names_other_scopes_or_flags_more(
    others: tuple[str, ...], content: Content, told: str | None
) -> None:
    told_data = encoded(replace(WAKE, other_scopes=others), content)["data"]
    assert (told_data["scope"], told_data["sequence"], told_data.get("other_scopes")) == ("a", "7", told)


def test_message_payload_names_no_scope() -> None:
    assert set(encoded(MESSAGE, Content(title="t"))["data"]) == {"delivery_id", "ack_token"}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (Content(), "sync"),
        (Content(data={"k": "v"}), "sync"),
        (Content(title="t"), None),
        (Content(body="b"), None),
        (Content(badge=0), None),
    ],
)
def test_alerts_do_not_collapse_like_wake_ups(content: Content, key: str | None) -> None:
    """FCM would keep one of several that were shown nowhere yet."""
    for scope in ("a", "b"):
        assert encoded(replace(WAKE, scope=scope), content)["android"].get("collapse_key") == key
