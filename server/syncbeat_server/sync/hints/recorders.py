"""Groups the recorders that both hints and streams report to."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder


class Recorders(NamedTuple):
    """Holds a process's recorders of the cursors that devices have, and of the staleness that they experience."""

    cursors: CursorRecorder
    hints: HintRecorder
