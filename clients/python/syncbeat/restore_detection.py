"""Decides to list a scope whose cursor is ahead of the server's head, since the server may have been restored. Pure."""

from __future__ import annotations

from syncbeat.v1 import core_pb2


class RestoreDetection:
    """Remembers for which heads scopes were listed already, so that each is listed once for the same head."""

    def __init__(self) -> None:
        # By scope: the cursor that was ahead of its head and that head, once the scope was listed for it.
        self._listed: dict[str, tuple[int, int]] = {}

    def is_to_be_listed(self, known: core_pb2.ScopeCursor | None, head: core_pb2.ScopeCursor) -> bool:
        """Tell if a scope is to be listed because its known cursor is ahead of its head.

        Either the server was restored, and the list is a reset; or the head is older than what a stream has brought,
        and the list is empty. So it is listed once for such a head.
        """
        if known is None or known.epoch != head.epoch or known.sequence <= head.sequence:
            self.forget(head.scope)
            return False
        cursor, listed_head = self._listed.get(head.scope, (-1, 0))
        if cursor == known.sequence and head.sequence >= listed_head:
            return False
        self._listed[head.scope] = known.sequence, head.sequence
        return True

    def forget(self, scope: str) -> None:
        """Forget a scope: its cursor is not ahead any more, or it has none."""
        self._listed.pop(scope, None)
