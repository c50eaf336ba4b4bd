"""Tracks the cursors of one hint stream, and what changed since its last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from syncbeat_server.sync.model import Cursor, Hint, ScopeState


@dataclass
class StreamProgress:
    """Tracks the progress of one stream.

    `sent` are its cursors by scope, `shown` the scopes whose cursors the device named or was sent changes of,
    `unrecorded` those whose cursors moved since they were recorded last. `more_scopes`: its user has more scopes than
    the stream follows. `cursors_changed` and `inputs_changed`: the cursors, or the inputs of the hint, differ from
    those at the last checkpoint.
    """

    opened_at: datetime
    states: dict[str, ScopeState] = field(default_factory=dict)
    sent: dict[str, Cursor] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)
    hint: Hint | None = None
    more_scopes: bool = False
    unrecorded: set[str] = field(default_factory=set)
    cursors_changed: bool = False
    inputs_changed: bool = False

    def move(self, cursor: Cursor) -> None:
        """Set the cursor of a scope."""
        if self.sent.get(cursor.scope) != cursor:
            self.sent[cursor.scope] = cursor
            self.unrecorded.add(cursor.scope)
            self.cursors_changed = True

    def leave(self, scope: str) -> None:
        """Forget a scope."""
        self.states.pop(scope, None)
        self.shown.discard(scope)
        if self.sent.pop(scope, None) is not None:
            self.cursors_changed = True

    def take_unrecorded(self) -> list[Cursor]:
        """Return the cursors to record as shown by the device since the last call.

        Only those that it named or was sent changes of: where it began "from now" it may lack everything before.
        """
        cursors = [self.sent[scope] for scope in self.unrecorded & self.shown & self.sent.keys()]
        self.unrecorded.clear()
        return cursors
