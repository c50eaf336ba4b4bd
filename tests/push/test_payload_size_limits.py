"""The 4,096 bytes of a payload, counted at the door and by the fake FCM as APNs, browsers and Android get it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat.v1 import core_pb2
from syncbeat_devtools.fake_fcm.message.parser import parse_message
from syncbeat_devtools.fake_fcm.message.schema import Violation
from syncbeat_server.errors import FieldViolation
from syncbeat_server.push.model import ClaimedDelivery, Content, Kind
from syncbeat_server.push.providers import Message
from syncbeat_server.push.providers.fcm.message import Encoder
from syncbeat_server.rpc.convert.notification import content
from tests.support.claimed_delivery import MESSAGE

pytestmark = pytest.mark.unit

# The longest name of an app, beside what the token always is (push/content/ack_token.py).
ACK_TOKEN = f"{'a' * 64}.{'x' * 43}"
CURSOR = replace(
    MESSAGE,
    kind=Kind.SYNC,
    type='"' * 128,
    scope='"' * 128,
    epoch="0" * 36,
    sequence=2**63 - 1,
    other_scopes=('"' * 128,) * 3,
)
LONGEST = (CURSOR, replace(MESSAGE, collapse_key='"' * 128))  # a wake-up has no collapse key, a message no cursor
TEXTS = st.text(alphabet='x"\\\n\r\té\u20ac\U0001f600', max_size=900)


def at_the_door(**fields: Any) -> tuple[Content, list[FieldViolation]]:
    faults: list[FieldViolation] = []
    return content(core_pb2.Notification(**fields), "notification", {}, faults), faults


def body(shown: Content, delivery: ClaimedDelivery = MESSAGE) -> bytes:
    return Encoder().encode(Message(delivery, shown, ACK_TOKEN))


def test_payload_limit_counts_escaped_quotes_here_and_at_fcm() -> None:
    shown, faults = at_the_door(body='"' * 3071)
    assert [fault.path for fault in faults] == ["notification"]
    with pytest.raises(Violation, match="APNS message is too big"):
        parse_message(body(shown))


@pytest.mark.parametrize(
    ("most", "fields"),
    [
        (3072, lambda n: {"body": "x" * n}),
        (1536, lambda n: {"body": '"' * n}),
        (1536, lambda n: {"body": "\n" * n}),
        (1536, lambda n: {"body": "é" * n}),
        (768, lambda n: {"body": "\U0001f600" * n}),
        (512, lambda n: {"body": "\x1b" * n}),
        (3072 - 7, lambda n: {"data": {"k": "x" * n}}),
    ],
)
def test_payload_limit_of_content_is_3072_json_bytes(most: int, fields: Any) -> None:
    for count, refused in ((most, False), (most + 1, True)):
        assert bool(at_the_door(**fields(count))[1]) == refused, count


@given(
    title=TEXTS,
    text=TEXTS,
    sound=st.text(alphabet='x"é', max_size=60),
    action=st.sampled_from(["", "OPEN", "https://example.org/" + "x" * 1000]),
    data=st.dictionaries(st.text(alphabet='xyé"', min_size=1, max_size=40), TEXTS, max_size=64),
    badge=st.sampled_from([None, 0, 99_999]),
)
def test_payload_limit_accepted_here_fits_every_platform(data: dict[str, str], badge: int | None, **texts: str) -> None:
    named = {"title": texts["title"], "body": texts["text"], "sound": texts["sound"], "click_action": texts["action"]}
    shown, faults = at_the_door(**named, data=data, badge=badge, image_url="https://example.org/i.png")
    if not faults:
        for delivery in LONGEST:
            assert parse_message(body(shown, delivery)).target == "a-token"


def test_payload_limit_fits_longest_cursor_and_collapse_key() -> None:
    data = {f"{number:02}": '"' * 10 for number in range(64)}
    room = 3072 - sum(len(orjson.dumps(value)) - 2 + 2 + 6 for value in data.values())
    shown, faults = at_the_door(title="t" * (room - 5), body="\n\n", data=data, badge=99_999, sound="s")
    assert not faults
    for delivery in LONGEST:
        assert parse_message(body(shown, delivery)).target == "a-token"
    assert at_the_door(title="t" * (room - 4), body="\n\n", data=data, sound="s")[1], "it is the largest"


def test_payload_limit_fits_a_link_sent_twice() -> None:
    link = "https://example.org/" + "x" * 1400
    room = 3072 - 2 * len(link) - len("click_action") - 6
    shown, faults = at_the_door(title="t" * room, click_action=link)
    assert not faults
    for delivery in LONGEST:
        assert parse_message(body(shown, delivery)).target == "a-token"
    assert at_the_door(title="t" * (room + 1), click_action=link)[1], "it is the longest"
