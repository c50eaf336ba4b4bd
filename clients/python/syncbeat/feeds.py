"""How far a device has come in its scopes, and which of them it has to list. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

_MAX_WANTED = 10_000
_MAX_ACKS = 20
MOST_NAMED = 2_000
"""Cursors of a request."""
_NAMED_BY_OLDER_SERVERS = 500  # at most, without a word of it


@dataclass(frozen=True)
class SyncBatch:
    """What to apply to one scope, in this order: drop what is kept of it, if `drop`; then each change, the whole value
    of its key; then keep the cursor, best in the same transaction. Without a cursor the scope is not the user's any
    more: there is nothing to keep.
    """

    scope: str
    changes: tuple[pb.Change, ...]
    cursor: core_pb2.ScopeCursor | None
    drop: bool = False


@dataclass
class Want:
    """A scope that is to be listed: not before a moment, and from its start if `drop`.

    `acks` are the tokens of the pushes that asked for it. `asked` counts who wanted it, so that a fetch which was
    under way meanwhile can tell; `until` is the newest place they wanted.
    """

    scope: str
    not_before: float = 0.0
    drop: bool = False
    until: core_pb2.ScopeCursor | None = None
    asked: int = 0
    acks: list[str] = field(default_factory=list)


def names_some(names: Collection[str], hint: pb.Hint) -> bool:
    """Whether a server that names these scopes beside this hint may follow others of the user, or leave some out."""
    return hint.more_scopes or len(names) == _NAMED_BY_OLDER_SERVERS


class Feeds:
    """The cursors of one device and what is wanted beyond them."""

    def __init__(self, cursors: Iterable[core_pb2.ScopeCursor]) -> None:
        # The scopes that moved last stand last.
        self.cursors = {cursor.scope: cursor for cursor in cursors}
        self.wanted: dict[str, Want] = {}
        # By scope: the cursor that was ahead of its head, and that head. It was asked about.
        self._doubted: dict[str, tuple[int, int]] = {}

    def newest(self, most: int) -> list[core_pb2.ScopeCursor]:
        """The cursors that moved last."""
        return list(self.cursors.values())[-most:]

    def compare(self, heads: Iterable[core_pb2.ScopeCursor]) -> None:
        """Want the scopes whose heads are ahead, or behind without a known reason; of one that was unknown and is
        empty, keep the head."""
        for head in heads:
            if self._is_behind(head) or self._is_doubtful(head):
                if head.scope not in self.wanted:
                    self.want(head.scope)
            elif head.scope not in self.cursors:
                self._keep(head)

    def left(self, followed: Iterable[core_pb2.ScopeCursor], hint: pb.Hint) -> list[str]:
        """The scopes with a cursor that are not among those that the server follows for the user, as its hint says.
        Where the user has more than it names, none is known to be left."""
        names = {cursor.scope for cursor in followed}
        return [] if names_some(names, hint) else list(self.cursors.keys() - names)

    def want(
        self,
        scope: str,
        *,
        until: core_pb2.ScopeCursor | None = None,
        not_before: float = 0.0,
        drop: bool = False,
        ack: str = "",
    ) -> None:
        """List this scope; once, however often it is wanted."""
        if scope not in self.wanted and len(self.wanted) >= _MAX_WANTED:
            return  # the next poll wants it again
        want = self.wanted.setdefault(scope, Want(scope))
        want.asked += 1
        want.until = until or want.until
        want.not_before = max(want.not_before, not_before)
        want.drop = want.drop or drop
        if ack and len(want.acks) < _MAX_ACKS:
            want.acks.append(ack)

    def next_wanted(self, now: float) -> Want | None:
        """A scope that may be listed now."""
        return next((want for want in self.wanted.values() if want.not_before <= now), None)

    def next_at(self) -> float:
        """When the next of them may be; infinity when none is wanted."""
        return min((want.not_before for want in self.wanted.values()), default=math.inf)

    def fetched(self, want: Want, asked: int) -> list[str]:
        """A scope was listed to its end, from when it had been wanted `asked` times: the pushes that are answered."""
        if want.asked != asked and (want.until is None or not self.has_reached(want.until)):
            return []
        self.wanted.pop(want.scope, None)
        return want.acks

    def has_reached(self, place: core_pb2.ScopeCursor) -> bool:
        """Whether the device has come to this place of this epoch."""
        known = self.cursors.get(place.scope)
        return known is not None and known.epoch == place.epoch and known.sequence >= place.sequence

    def is_news(self, change: pb.Change) -> bool:
        """Whether a streamed change is to be applied: it is not known, and no list that is to come brings it."""
        known = self.cursors.get(change.scope)
        if known is None or _are_of_two_lives(known, change.epoch):
            # A scope the user joined: its stream begins with the change, what stood there before it is listed. Of two
            # epochs a list tells which one is over.
            self.want(change.scope)
        if known is None or change.scope in self.wanted:
            return False
        return not known.HasField("sequence") or known.sequence < change.sequence

    def pass_checkpoint(self, cursors: Iterable[core_pb2.ScopeCursor]) -> None:
        """A stream has sent everything up to here, and it was applied."""
        for cursor in cursors:
            known = self.cursors.get(cursor.scope)
            if known is None or _are_of_two_lives(known, cursor.epoch):
                self.compare([cursor])
            elif cursor.scope not in self.wanted and self._is_behind(cursor):
                self._keep(cursor)

    def moved(self, batch: SyncBatch) -> None:
        """A batch was applied."""
        if batch.cursor is not None:
            self._keep(batch.cursor)
            return
        self.cursors.pop(batch.scope, None)
        self.wanted.pop(batch.scope, None)
        self._doubted.pop(batch.scope, None)

    def _is_behind(self, head: core_pb2.ScopeCursor) -> bool:
        known = self.cursors.get(head.scope)
        if known is None or not known.HasField("sequence"):
            return head.sequence > 0
        return known.epoch not in ("", head.epoch) or known.sequence < head.sequence

    def _is_doubtful(self, head: core_pb2.ScopeCursor) -> bool:
        """Whether a cursor is to be listed that is ahead of a head: the server was restored, and a list is reset, or
        the head is older than what a stream has brought, and the list is empty. It is asked once for such a head."""
        known = self.cursors.get(head.scope)
        if known is None or known.epoch != head.epoch or known.sequence <= head.sequence:
            self._doubted.pop(head.scope, None)
            return False
        cursor, asked = self._doubted.get(head.scope, (-1, 0))
        if cursor == known.sequence and head.sequence >= asked:
            return False
        self._doubted[head.scope] = known.sequence, head.sequence
        return True

    def _keep(self, cursor: core_pb2.ScopeCursor) -> None:
        self.cursors.pop(cursor.scope, None)
        self.cursors[cursor.scope] = cursor


def _are_of_two_lives(known: core_pb2.ScopeCursor, epoch: str) -> bool:
    # What stands behind the epoch of a list under way is the server's own.
    return known.HasField("sequence") and bool(known.epoch) and not known.epoch.startswith(epoch)
