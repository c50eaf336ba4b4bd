"""Tracks how far a device has come in its scopes, and which of them it has to list. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from syncbeat.restore_detection import RestoreDetection
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

_MAX_PENDING = 10_000
_MAX_ACKS = 20
MAX_NAMED_CURSORS = 2_000
"""The most cursors of a request."""
_NAMED_BY_OLDER_SERVERS = 500  # at most, and they do not say if there are more


@dataclass(frozen=True)
class SyncBatch:
    """Changes to apply to one scope.

    Apply them in this order: delete what is kept of the scope, if `drop`; then each change, the whole value of its key;
    then store the cursor, best in the same transaction. Without a cursor the user is no longer a member of the scope,
    and there is no cursor to store.
    """

    scope: str
    changes: tuple[pb.Change, ...]
    cursor: core_pb2.ScopeCursor | None
    drop: bool = False


@dataclass
class PendingFetch:
    """A scope to be listed, not before a moment, and from its start if `drop`.

    `acks` are the tokens of the pushes that asked for it. `requests` counts who asked, so that a fetch can tell if more
    did while it was under way; `until` is the newest place that they asked for.
    """

    scope: str
    not_before: float = 0.0
    drop: bool = False
    until: core_pb2.ScopeCursor | None = None
    requests: int = 0
    acks: list[str] = field(default_factory=list)


def may_omit_scopes(named: Collection[str], hint: pb.Hint) -> bool:
    """Tell if a server that names these scopes beside this hint may know of more scopes of the user."""
    return hint.more_scopes or len(named) == _NAMED_BY_OLDER_SERVERS


class CursorState:
    """The cursors of one device, and the scopes in which there is more to fetch."""

    def __init__(self, cursors: Iterable[core_pb2.ScopeCursor]) -> None:
        # In the order in which they moved, the last one last.
        self.cursors = {cursor.scope: cursor for cursor in cursors}
        self.pending: dict[str, PendingFetch] = {}
        self._restores = RestoreDetection()

    def newest(self, most: int) -> list[core_pb2.ScopeCursor]:
        """Return the cursors that moved last."""
        return list(self.cursors.values())[-most:]

    def compare(self, heads: Iterable[core_pb2.ScopeCursor]) -> None:
        """Request the scopes whose heads differ: ahead of the cursor, or behind it without a known reason.

        The head of an unknown scope that is empty becomes its cursor.
        """
        for head in heads:
            if self._is_behind(head) or self._restores.is_to_be_listed(self.cursors.get(head.scope), head):
                if head.scope not in self.pending:
                    self.request(head.scope)
            elif head.scope not in self.cursors:
                self._store(head)

    def left_scopes(self, followed: Iterable[core_pb2.ScopeCursor], hint: pb.Hint) -> list[str]:
        """Return the scopes with a cursor that the server no longer follows for the user.

        None is known to be left if the server may follow more scopes than it names.
        """
        named = {cursor.scope for cursor in followed}
        return [] if may_omit_scopes(named, hint) else list(self.cursors.keys() - named)

    def request(
        self,
        scope: str,
        *,
        until: core_pb2.ScopeCursor | None = None,
        not_before: float = 0.0,
        drop: bool = False,
        ack: str = "",
    ) -> None:
        """Request that a scope be listed; once, however often it is requested."""
        if scope not in self.pending and len(self.pending) >= _MAX_PENDING:
            return  # the next poll requests it again
        fetch = self.pending.setdefault(scope, PendingFetch(scope))
        fetch.requests += 1
        fetch.until = until or fetch.until
        fetch.not_before = max(fetch.not_before, not_before)
        fetch.drop = fetch.drop or drop
        if ack and len(fetch.acks) < _MAX_ACKS:
            fetch.acks.append(ack)

    def next_pending(self, now: float) -> PendingFetch | None:
        """Return a scope that may be listed now."""
        return next((fetch for fetch in self.pending.values() if fetch.not_before <= now), None)

    def next_at(self) -> float:
        """Return the moment when the next scope may be listed; infinity when none is pending."""
        return min((fetch.not_before for fetch in self.pending.values()), default=math.inf)

    def complete(self, fetch: PendingFetch, requests: int) -> list[str]:
        """Note that a scope was listed to its end, and return the tokens of the pushes to acknowledge.

        `requests` is the count from before the listing: if there were more meanwhile, the scope stays pending until
        their place is reached.
        """
        if fetch.requests != requests and (fetch.until is None or not self.has_reached(fetch.until)):
            return []
        self.pending.pop(fetch.scope, None)
        return fetch.acks

    def has_reached(self, place: core_pb2.ScopeCursor) -> bool:
        """Tell if the device has come to this place of this epoch."""
        known = self.cursors.get(place.scope)
        return known is not None and known.epoch == place.epoch and known.sequence >= place.sequence

    def accepts(self, change: pb.Change) -> bool:
        """Tell if a streamed change is to be applied: it is new, and no pending fetch will bring it."""
        known = self.cursors.get(change.scope)
        if known is None or _is_other_epoch(known, change.epoch):
            # A scope that the user joined: its stream begins with this change, what came before is listed. Of two
            # epochs, the list tells which one is over.
            self.request(change.scope)
        if known is None or change.scope in self.pending:
            return False
        return not known.HasField("sequence") or known.sequence < change.sequence

    def pass_checkpoint(self, cursors: Iterable[core_pb2.ScopeCursor]) -> None:
        """Move the cursors to a checkpoint: a stream has sent everything up to there, and it was applied."""
        for cursor in cursors:
            known = self.cursors.get(cursor.scope)
            if known is None or _is_other_epoch(known, cursor.epoch):
                self.compare([cursor])
            elif cursor.scope not in self.pending and self._is_behind(cursor):
                self._store(cursor)

    def record_applied(self, batch: SyncBatch) -> None:
        """Move the cursor past a batch that was applied, or forget the scope if the batch has none."""
        if batch.cursor is not None:
            self._store(batch.cursor)
            return
        self.cursors.pop(batch.scope, None)
        self.pending.pop(batch.scope, None)
        self._restores.forget(batch.scope)

    def _is_behind(self, head: core_pb2.ScopeCursor) -> bool:
        known = self.cursors.get(head.scope)
        if known is None or not known.HasField("sequence"):
            return head.sequence > 0
        return known.epoch not in ("", head.epoch) or known.sequence < head.sequence

    def _store(self, cursor: core_pb2.ScopeCursor) -> None:
        self.cursors.pop(cursor.scope, None)
        self.cursors[cursor.scope] = cursor


def _is_other_epoch(known: core_pb2.ScopeCursor, epoch: str) -> bool:
    # While a list is under way the server adds a suffix of its own to the epoch.
    return known.HasField("sequence") and bool(known.epoch) and not known.epoch.startswith(epoch)
