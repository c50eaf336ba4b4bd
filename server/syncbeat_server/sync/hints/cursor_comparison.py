"""Compares the cursors that a device shows with the heads of its scopes: one behind, or ahead of its head, is news."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from syncbeat_server.errors import AccessDenied
from syncbeat_server.sync.model import Cursor, DeviceKey
from syncbeat_server.sync.store.device_views import DeviceView


def differing_heads(
    device: DeviceKey,
    view: DeviceView,
    cursors: Sequence[Cursor],
    record_shown: Callable[[DeviceKey, Sequence[Cursor]], None],
) -> list[Cursor]:
    """Return the heads that differ from the cursors of their scopes, and record the cursors that are new.

    A head is ahead of its cursor, in another epoch, or behind it after a restore took changes back.

    Raises:
        AccessDenied: a cursor names a scope that the view lacks.
    """
    differing = []
    for cursor in cursors:
        scope, epoch, sequence = cursor
        state = view.scopes.get(scope)
        if state is None:
            raise AccessDenied("not a member of this scope", scope=scope)
        if sequence is None or epoch not in ("", state.epoch):
            differing.append(state.cursor)
            continue
        if sequence != state.head:
            differing.append(state.cursor)
        if epoch and sequence <= state.head and _is_newer(view.shown.get(scope), cursor, state.head):
            view.shown[scope] = cursor
            record_shown(device, [cursor])
    return differing


def covers(view: DeviceView, cursors: Sequence[Cursor]) -> bool:
    """Return False if a cursor shows something that the view lacks: either the view or the cursor is outdated."""
    for scope, epoch, sequence in cursors:
        state = view.scopes.get(scope)
        if state is None or (sequence is not None and sequence > state.head):
            return False
        if epoch and not epoch.startswith(state.epoch):  # a list under way has a mark behind the epoch
            return False
    return True


def _is_newer(shown: Cursor | None, cursor: Cursor, head: int) -> bool:
    if shown is None or shown.epoch != cursor.epoch:
        return True
    return not (cursor.sequence or 0) <= (shown.sequence or 0) <= head
