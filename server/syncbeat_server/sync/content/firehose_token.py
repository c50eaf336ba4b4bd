"""Where a stream of a whole app is, and the token that says so.

A place is a snapshot of PostgreSQL: which transactions had ended. What the others wrote is still to come, whatever
their number and however late they end. A long catch-up stops at a second snapshot and goes by (scope, sequence) in
between.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, NamedTuple

import orjson

MAX_TOKEN_BYTES = 8_192
"""As `WatchHintsRequest.token` says; two snapshots of `_MAX_RUNNING` and a scope's name take some 6,000."""

_VERSION = 1
_CHECK_BYTES = 8
_FEED_DIGITS = 16
_MAX_RUNNING = 256
_MAX_NUMBER = 2**63 - 1
_MAX_SCOPE_BYTES = 128
_ERA = 2**32  # the first number of each is no transaction's: PostgreSQL reads no snapshot that begins or ends there


class Snapshot(NamedTuple):
    """Which transactions had ended at a moment: all below `xmin`, none from `xmax` on, and between them all that are
    not among the `running`, in ascending order."""

    xmin: int
    xmax: int
    running: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The snapshot as PostgreSQL writes it."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"


class Place(NamedTuple):
    """What of an app's feed was brought: all that had ended at `since` (None: nothing yet), and of what ended between
    that and `until`, if there is one, the rows up to `after`, in order of (scope, sequence).

    `feed` tells the feed's table, in this database of this cluster, from others; `pruned` is the last transaction whose
    tombstones had been removed at `since`, or earlier.
    """

    feed: str
    since: Snapshot | None
    until: Snapshot | None = None
    after: tuple[str, int] = ("", 0)
    pruned: int = 0


class NotAToken(ValueError):
    """The text is no token of this app's feed."""


def snapshot_of(text: str) -> Snapshot:
    """Reads a snapshot as PostgreSQL writes it."""
    xmin, xmax, running = text.split(":")
    return Snapshot(int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())


def feed_of(identity: str) -> str:
    """Returns a short name for what `syncbeat_feed_identity` tells, which is nobody's business."""
    return hashlib.sha256(identity.encode()).hexdigest()[:_FEED_DIGITS]


def encode(app_id: str, place: Place) -> str:
    """Returns the token of a place. Where very many transactions run, what the newest of them wrote may come again."""
    if place.until is not None and len(place.until.running) > _MAX_RUNNING:
        # A catch-up cannot stop at an earlier moment than it did: it begins anew.
        place = Place(place.feed, place.since, pruned=place.pruned)
    since = None if place.since is None else _parts(_coarse(place.since))
    until = None if place.until is None else _parts(place.until)
    told = orjson.dumps([_VERSION, place.feed, since, until, *place.after, place.pruned])
    return _text(_check(app_id, told) + told)


def decode(app_id: str, token: str) -> Place:
    """Returns the place of a token. The check keeps out what is damaged or another app's; it is no secret, since a
    token opens nothing that its bearer may not read.

    Raises:
        NotAToken: it was not made by `encode` for this app.
    """
    try:
        given = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        if _text(given) != token:  # bits behind the last octet, or padding
            raise NotAToken
        check, told = given[:_CHECK_BYTES], given[_CHECK_BYTES:]
        if check != _check(app_id, told):
            raise NotAToken
        version, *rest = orjson.loads(told)
        # One of a later version is good, only not here, after a roll-back: no feed is of that name.
        return _place(*rest) if version == _VERSION else Place("", None)
    except (ValueError, TypeError) as error:
        raise NotAToken("not a token of this app") from error


def _text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


def _coarse(snapshot: Snapshot) -> Snapshot:
    # An earlier moment than the snapshot's: what is told again is already known, and nothing is left out.
    if len(snapshot.running) <= _MAX_RUNNING:
        return snapshot
    return Snapshot(snapshot.xmin, snapshot.running[_MAX_RUNNING], snapshot.running[:_MAX_RUNNING])


def _check(app_id: str, told: bytes) -> bytes:
    return hashlib.sha256(app_id.encode() + b"\0" + told).digest()[:_CHECK_BYTES]


def _parts(snapshot: Snapshot) -> list[int]:
    # Each running one as its distance to the one before, which is a small number.
    before = (snapshot.xmin, *snapshot.running)
    return [snapshot.xmin, snapshot.xmax, *(xid - last for last, xid in zip(before, snapshot.running, strict=False))]


def _place(feed: Any, since: Any, until: Any, scope: Any, sequence: Any, pruned: Any) -> Place:
    if not isinstance(feed, str) or not isinstance(scope, str) or "\0" in scope:
        raise NotAToken
    if len(scope.encode()) > _MAX_SCOPE_BYTES or not (_is_number(sequence) and _is_number(pruned)):
        raise NotAToken
    return Place(feed, _snapshot(since), _snapshot(until), (scope, sequence), pruned)


def _snapshot(parts: Any) -> Snapshot | None:
    if parts is None:
        return None
    if not isinstance(parts, list) or not all(map(_is_number, parts)) or len(parts) > _MAX_RUNNING + 2:
        raise NotAToken
    xmin, xmax, *distances = parts
    running = []
    last = xmin
    for distance in distances:
        last += distance
        running.append(last)
    in_order = all(distance > 0 for distance in distances[1:])
    if not 0 < xmin <= xmax <= _MAX_NUMBER or not in_order or (running and running[-1] >= xmax):
        raise NotAToken
    if not (xmin % _ERA and xmax % _ERA):
        raise NotAToken
    return Snapshot(xmin, xmax, tuple(running))


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_NUMBER
