"""Tokens of a whole app's stream: what goes in comes out, is small, and nothing else comes in."""

from __future__ import annotations

import base64
import hashlib
import string
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from syncbeat_server.sync.content.firehose_token import (
    MAX_TOKEN_BYTES,
    FeedPosition,
    InvalidToken,
    Snapshot,
    decode,
    encode,
    parse_snapshot,
)

pytestmark = pytest.mark.unit

FEED = "0123456789abcdef"
NUMBERS = some.integers(1, 2**62).filter(lambda number: number % 2**32)


@some.composite
def snapshots(draw: Any, most: int = 256) -> Snapshot:
    """A snapshot as PostgreSQL makes them: the oldest of those that run is xmin, the others lie within 2**31 of it."""
    xmin = draw(NUMBERS)
    later = draw(some.lists(some.integers(1, 2**31), unique=True, max_size=most - 1))
    running = tuple(sorted(xmin + distance for distance in later))
    last = running[-1] if running else xmin
    return Snapshot(xmin, last + draw(some.integers(1, 99).filter(lambda more: (last + more) % 2**32)), running)


AFTER = some.tuples(some.text(max_size=32).filter(lambda text: "\0" not in text), some.integers(0, 2**63 - 1))


@given(some.none() | snapshots(), some.none() | snapshots(), AFTER, some.integers(0, 2**63 - 1))
def test_firehose_token_round_trips(
    since: Snapshot | None, until: Snapshot | None, after: tuple[str, int], pruned: int
) -> None:
    place = FeedPosition(FEED, since, until, after, pruned)
    assert decode("shop", encode("shop", place)) == place


def test_firehose_token_size_is_small_under_many_transactions() -> None:
    xmin = 2**62 + 3
    running = tuple(xmin + number * 8_388_000 for number in range(256))  # as far apart as 2**31 allows
    full = Snapshot(xmin, running[-1] + 1, running)
    token = encode("shop", FeedPosition(FEED, full, full, ("é" * 64, 2**63 - 1), 2**63 - 1))
    assert len(token) <= MAX_TOKEN_BYTES
    assert decode("shop", token).since == full


def test_firehose_token_of_too_many_transactions_goes_back() -> None:
    running = tuple(range(1_000, 3_000, 2))
    many = Snapshot(1_000, 5_000, running)
    since = decode("shop", encode("shop", FeedPosition(FEED, many))).since
    assert since is not None

    def holds(snapshot: Snapshot, xid: int) -> bool:
        return xid < snapshot.xmin or (xid < snapshot.xmax and xid not in snapshot.running)

    assert not any(holds(since, xid) and not holds(many, xid) for xid in range(900, 5_100))
    assert sum(holds(since, xid) for xid in range(900, 5_100)) > 300
    few = Snapshot(7, 9)
    assert decode("shop", encode("shop", FeedPosition(FEED, few, many, ("s", 1), 5))) == FeedPosition(
        FEED, few, pruned=5
    ), "the round begins anew"


@pytest.mark.parametrize("text", ["7:7:", "7:9:7", "7:90:7,8,42"])
def test_snapshot_text_is_that_of_postgresql(text: str) -> None:
    assert parse_snapshot(text).text == text


@given(some.binary(max_size=300) | some.text(max_size=300))
def test_firehose_token_of_arbitrary_text_is_refused(content: bytes | str) -> None:
    token = content if isinstance(content, str) else base64.urlsafe_b64encode(content).decode()
    with pytest.raises(InvalidToken):
        decode("shop", token)


def test_firehose_token_of_another_app_or_altered_is_refused() -> None:
    token = encode("shop", FeedPosition(FEED, Snapshot(700, 800, (750,)), Snapshot(900, 900), ("room", 7)))
    with pytest.raises(InvalidToken):
        decode("other", token)
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(InvalidToken):
            decode("shop", token[:place] + other + token[place + 1 :])


@pytest.mark.parametrize("scope", ["", "r", "ro"])
def test_firehose_token_with_another_tail_is_refused(scope: str) -> None:
    token = encode("shop", FeedPosition(FEED, Snapshot(700, 800), None, (scope, 7)))
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    others = [token[:-1] + digit for digit in digits if digit != token[-1]]
    for other in [
        *others,
        f"{token}=",
        f"{token}==",
        f"{token}===",
        f"{token}\n",
        f"{token} ",
        f" {token}",
        f"={token}",
    ]:
        with pytest.raises(InvalidToken):
            decode("shop", other)


WRONG: list[list[Any]] = [
    [],
    [1],
    [1, FEED, None, None, "s", 0],
    [1, 7, None, None, "s", 1, 0],
    [1, FEED, None, None, "s\0", 1, 0],
    [1, FEED, None, None, "s" * 129, 1, 0],
    [1, FEED, None, None, "s", -1, 0],
    [1, FEED, None, None, "s", True, 0],
    [1, FEED, None, None, "s", 1.5, 0],
    [1, FEED, None, None, "s", 2**63, 0],
    [1, FEED, None, None, "s", 1, -1],
    [1, FEED, None, None, "s", 1],
    [1, FEED, "7:7:", None, "s", 1, 0],
    [1, FEED, [7], None, "s", 1, 0],
    [1, FEED, [0, 7], None, "s", 1, 0],
    [1, FEED, [8, 7], None, "s", 1, 0],
    [1, FEED, [7, 9, 2], None, "s", 1, 0],
    [1, FEED, [7, 99, 2, 0], None, "s", 1, 0],
    [1, FEED, [7, 99, -1], None, "s", 1, 0],
    [1, FEED, [7, 2**63], None, "s", 1, 0],
    *[[1, FEED, snapshot, None, "s", 1, 0] for snapshot in ([2**62, 2**63 - 1], [2**32, 2**32 + 9], [7, 2**33])],
    [1, FEED, None, [7, 2**32], "s", 1, 0],
    [1, FEED, [7, 2**40, *[1] * 257], None, "s", 1, 0],
    [1, FEED, {"7": 9}, None, "s", 1, 0],
]


@pytest.mark.parametrize("content", WRONG, ids=lambda content: orjson.dumps(content)[:60].decode())
def test_firehose_token_with_a_valid_checksum_and_bad_content_is_refused(content: list[Any]) -> None:
    with pytest.raises(InvalidToken):
        decode("shop", _with_check(content))


def test_firehose_token_of_a_later_version_is_foreign() -> None:
    assert decode("shop", _with_check([2, "whatever", {"it": "says"}])) == FeedPosition("", None)


def _with_check(content: list[Any]) -> str:
    told = orjson.dumps(content)
    check = hashlib.sha256(b"shop\0" + told).digest()[:8]
    return base64.urlsafe_b64encode(check + told).decode().rstrip("=")
