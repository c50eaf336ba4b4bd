"""Tracks where a watch is in its scopes, so that it resumes without missing a change or repeating one. Pure."""

from __future__ import annotations

from syncbeat.cursor_state import may_omit_scopes
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

_MAX_CURSORS = 100_000  # as many as the server keeps for a stream of all scopes that has no token


class WatchPosition:
    """The cursors and the token that a watch resumes by."""

    def __init__(self, request: pb.WatchHintsRequest, max_cursors_beside_token: int) -> None:
        self.cursors = {cursor.scope: cursor for cursor in request.cursors}
        self.token = request.token
        self._all_scopes = request.all_scopes
        self._max_cursors_beside_token = max_cursors_beside_token

    def accepts(self, change: pb.Change) -> bool:
        """Move past a change, and tell if it is new."""
        cursor = core_pb2.ScopeCursor(scope=change.scope, epoch=change.epoch, sequence=change.sequence)
        if not self._is_ahead(cursor):
            return False
        self.store(cursor)
        return True

    def pass_checkpoint(self, checkpoint: pb.Checkpoint) -> None:
        """Move to a checkpoint, and forget the scopes that a user has left."""
        self.token = checkpoint.token or self.token
        followed = {cursor.scope for cursor in checkpoint.cursors}
        if not self._all_scopes and not may_omit_scopes(followed, checkpoint.hint):
            # A user's checkpoint names every scope it has. A cursor of one that it has left would be refused.
            for scope in self.cursors.keys() - followed:
                del self.cursors[scope]
        for cursor in checkpoint.cursors:
            known = self.cursors.get(cursor.scope)
            if self._is_ahead(cursor) or (known is not None and not known.epoch):
                self.store(cursor)

    def reset(self, reset: pb.Reset) -> None:
        """Go on from the head of a reset; without a scope, from the start of all scopes."""
        if reset.scope:
            self.store(reset.head)
        else:
            self.cursors.clear()  # everything comes anew, with sequences that may be lower; the next token is good

    def store(self, cursor: core_pb2.ScopeCursor) -> None:
        """Move the cursor of a scope. When there are too many, those that moved first are forgotten."""
        self.cursors.pop(cursor.scope, None)
        self.cursors[cursor.scope] = cursor
        while len(self.cursors) > (self._max_cursors_beside_token if self.token else _MAX_CURSORS):
            del self.cursors[next(iter(self.cursors))]

    def forget(self, scope: str) -> bool:
        """Forget the cursor of a scope, and tell if there was one."""
        return self.cursors.pop(scope, None) is not None

    def _is_ahead(self, cursor: core_pb2.ScopeCursor) -> bool:
        known = self.cursors.get(cursor.scope)
        if known is None or not known.HasField("sequence") or known.epoch not in ("", cursor.epoch):
            return True
        return cursor.sequence > known.sequence
