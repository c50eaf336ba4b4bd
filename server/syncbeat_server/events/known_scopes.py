"""Remembers scopes that were there a while ago, whose rows need not be inserted."""

from __future__ import annotations

from collections.abc import Iterable

from syncbeat_server.sync.model import ScopeKey

_MAX_KNOWN = 20_000  # of 200 bytes each


class KnownScopes:
    """Scopes of which this process has seen that they exist. One may be gone: then forget all."""

    def __init__(self) -> None:
        self._known: set[ScopeKey] = set()

    def include(self, keys: Iterable[ScopeKey]) -> bool:
        """Return True if all of these were there."""
        return self._known.issuperset(keys)

    def add(self, keys: Iterable[ScopeKey]) -> None:
        """Remember scopes that were just seen."""
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        self._known.update(keys)

    def forget(self) -> None:
        """Take none for there."""
        self._known.clear()
