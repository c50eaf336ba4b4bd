"""Decides if a feed can be followed from a cursor on without missing anything that came after it. Pure.

Deletions below `ScopeState.pruned` are gone. But a list from the start passes such places on its way and misses nothing
there: it never showed keys that had been deleted when it began. So its cursors carry a mark behind the epoch until they
are past `pruned`.
"""

from __future__ import annotations

from syncbeat_server.sync.model import Cursor, ScopeState

_MARK = "~"
_MAX_DIGITS = 19


def can_resume(cursor: Cursor, state: ScopeState) -> bool:
    """Return True if a reader that has seen a feed up to a cursor can learn all that came after it.

    A reader that has seen nothing always can.
    """
    sequence = cursor.sequence or 0
    if cursor.epoch in ("", state.epoch):
        complete_to = sequence
    else:
        epoch, _, pruned = cursor.epoch.rpartition(_MARK)
        if epoch != state.epoch or not _is_number(pruned):
            return False
        complete_to = max(sequence, int(pruned))
    return sequence <= state.head and (sequence == 0 or complete_to >= state.pruned)


def resumable_cursor(state: ScopeState, sequence: int) -> Cursor:
    """Return the cursor of a reader that could resume, or began at the start, and was sent all up to `sequence`."""
    epoch = state.epoch if sequence >= state.pruned else f"{state.epoch}{_MARK}{state.pruned}"
    return Cursor(state.scope, epoch, sequence)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
