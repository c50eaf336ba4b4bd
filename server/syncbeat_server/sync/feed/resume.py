"""Whether a feed can be followed from a cursor on: is everything still told that came after it?

Deletions are not, below `ScopeState.pruned`. But a list from the start passes such places on its way and misses nothing
there: what had been deleted when it began, it has never shown. So its cursors say so, behind the epoch, until they are
past `pruned`.
"""

from __future__ import annotations

from syncbeat_server.sync.model import Cursor, ScopeState

_MARK = "~"
_MOST_DIGITS = 19


def can_resume(cursor: Cursor, state: ScopeState) -> bool:
    """Whether who has seen a feed up to a cursor learns all that came after. One that has seen nothing does."""
    sequence = cursor.sequence or 0
    if cursor.epoch in ("", state.epoch):
        complete_to = sequence
    else:
        epoch, _, pruned = cursor.epoch.rpartition(_MARK)
        if epoch != state.epoch or not _is_number(pruned):
            return False
        complete_to = max(sequence, int(pruned))
    return sequence <= state.head and (sequence == 0 or complete_to >= state.pruned)


def reached(state: ScopeState, sequence: int) -> Cursor:
    """Where somebody is who could resume, or began at the start, and has been told everything up to `sequence`."""
    epoch = state.epoch if sequence >= state.pruned else f"{state.epoch}{_MARK}{state.pruned}"
    return Cursor(state.scope, epoch, sequence)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
