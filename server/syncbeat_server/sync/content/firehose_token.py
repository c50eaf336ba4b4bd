"""Encodes the position of a stream of a whole app in a token.

A position is a snapshot of PostgreSQL: the transactions that had ended. Changes of the others are still to come,
whatever their numbers and however late they end. A long catch-up ends at a second snapshot and goes by (scope,
sequence) in between.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, NamedTuple

import orjson

MAX_TOKEN_BYTES = 8_192
"""As `WatchHintsRequest.token` documents; two snapshots of `_MAX_RUNNING` and a scope's name take some 6,000."""

_VERSION = 1
_CHECK_BYTES = 8
_FEED_DIGITS = 16
_MAX_RUNNING = 256
_MAX_NUMBER = 2**63 - 1
_MAX_SCOPE_BYTES = 128
_ERA = 2**32  # PostgreSQL gives no transaction its first number, and parses no snapshot that begins or ends there


class Snapshot(NamedTuple):
    """Holds the transactions that had ended at a moment.

    All below `xmin` had, none from `xmax` on, and between them all except the `running`, in ascending order.
    """

    xmin: int
    xmax: int
    running: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """Return the snapshot as PostgreSQL writes it."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"


class FeedPosition(NamedTuple):
    """Holds the part of an app's feed that was sent.

    That is all that had ended at `since` (None: nothing yet), and of what ended between that and `until`, if set, the
    rows up to `after`, in order of (scope, sequence). `feed` tells the feed's table, in this database of this cluster,
    from others; `pruned` is the last transaction with tombstones that had been removed at `since`, or earlier.
    """

    feed: str
    since: Snapshot | None
    until: Snapshot | None = None
    after: tuple[str, int] = ("", 0)
    pruned: int = 0


class InvalidToken(ValueError):
    """Says that a text is no token of this app's feed."""


def parse_snapshot(text: str) -> Snapshot:
    """Return the snapshot of a text as PostgreSQL writes it."""
    xmin, xmax, running = text.split(":")
    return Snapshot(int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())


def feed_name(identity: str) -> str:
    """Return a short name for the result of `syncbeat_feed_identity`, which is not disclosed."""
    return hashlib.sha256(identity.encode()).hexdigest()[:_FEED_DIGITS]


def encode(app_id: str, position: FeedPosition) -> str:
    """Return the token of a position.

    With very many open transactions, changes of the newest of them may be sent again.
    """
    if position.until is not None and len(position.until.running) > _MAX_RUNNING:
        # A pass cannot end at an earlier moment than it began to: it is begun anew.
        position = FeedPosition(position.feed, position.since, pruned=position.pruned)
    since = None if position.since is None else _numbers(_coarsened(position.since))
    until = None if position.until is None else _numbers(position.until)
    payload = orjson.dumps([_VERSION, position.feed, since, until, *position.after, position.pruned])
    return _base64(_checksum(app_id, payload) + payload)


def decode(app_id: str, token: str) -> FeedPosition:
    """Return the position of a token.

    The checksum rejects damaged tokens and other apps'; it is no secret, since a token gives access to nothing that its
    bearer may not read.

    Raises:
        InvalidToken: it was not made by `encode` for this app.
    """
    try:
        given = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        if _base64(given) != token:  # bits behind the last octet, or padding
            raise InvalidToken
        checksum, payload = given[:_CHECK_BYTES], given[_CHECK_BYTES:]
        if checksum != _checksum(app_id, payload):
            raise InvalidToken
        version, *rest = orjson.loads(payload)
        # A token of a later version is valid, but not here after a roll-back: no feed has the empty name.
        return _position(*rest) if version == _VERSION else FeedPosition("", None)
    except (ValueError, TypeError) as error:
        raise InvalidToken("not a token of this app") from error


def _base64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


def _coarsened(snapshot: Snapshot) -> Snapshot:
    # Moved to an earlier moment: some changes are sent again, and none is left out.
    if len(snapshot.running) <= _MAX_RUNNING:
        return snapshot
    return Snapshot(snapshot.xmin, snapshot.running[_MAX_RUNNING], snapshot.running[:_MAX_RUNNING])


def _checksum(app_id: str, payload: bytes) -> bytes:
    return hashlib.sha256(app_id.encode() + b"\0" + payload).digest()[:_CHECK_BYTES]


def _numbers(snapshot: Snapshot) -> list[int]:
    # Each running transaction as its distance to the one before, which is a small number.
    before = (snapshot.xmin, *snapshot.running)
    return [snapshot.xmin, snapshot.xmax, *(xid - last for last, xid in zip(before, snapshot.running, strict=False))]


def _position(feed: Any, since: Any, until: Any, scope: Any, sequence: Any, pruned: Any) -> FeedPosition:
    if not isinstance(feed, str) or not isinstance(scope, str) or "\0" in scope:
        raise InvalidToken
    if len(scope.encode()) > _MAX_SCOPE_BYTES or not (_is_number(sequence) and _is_number(pruned)):
        raise InvalidToken
    return FeedPosition(feed, _snapshot(since), _snapshot(until), (scope, sequence), pruned)


def _snapshot(parts: Any) -> Snapshot | None:
    if parts is None:
        return None
    if not isinstance(parts, list) or not all(map(_is_number, parts)) or len(parts) > _MAX_RUNNING + 2:
        raise InvalidToken
    xmin, xmax, *distances = parts
    running = []
    last = xmin
    for distance in distances:
        last += distance
        running.append(last)
    in_order = all(distance > 0 for distance in distances[1:])
    if not 0 < xmin <= xmax <= _MAX_NUMBER or not in_order or (running and running[-1] >= xmax):
        raise InvalidToken
    if not (xmin % _ERA and xmax % _ERA):
        raise InvalidToken
    return Snapshot(xmin, xmax, tuple(running))


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER
