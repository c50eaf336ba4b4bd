"""Encoders keep what is asked for again, and let go of what is not."""

from __future__ import annotations

import sys
import weakref
from datetime import UTC, datetime

import pytest

from syncbeat_server.rpc.convert.stream_events import EventEncoder
from syncbeat_server.rpc.fastpath.hint_message import HintAnswerEncoder
from syncbeat_server.sync.model import Change, Cursor, Hint, Priority

pytestmark = pytest.mark.unit


def hint(head: Cursor) -> Hint:
    return Hint(30.0, Priority.FAST, 1.8e9, False, (head,), False, 300.0)


def test_encoded_head_is_forgotten_once_its_scope_moved() -> None:
    encoder = HintAnswerEncoder()
    head = Cursor("news", "epoch", 1)
    unkept = sys.getrefcount(head)

    encoder.encode(hint(head))
    kept = sys.getrefcount(head)
    encoder.encode(hint(Cursor("news", "epoch", 2)))

    assert kept > unkept
    assert sys.getrefcount(head) == unkept


def test_encoded_change_is_shared_and_forgotten_with_the_change() -> None:
    encoder = EventEncoder()
    change = Change("news", "epoch", "key", "{}", False, 1, datetime.now(UTC))
    gone = weakref.ref(change)

    assert encoder.encode_change(change) is encoder.encode_change(change)
    del change

    assert gone() is None
