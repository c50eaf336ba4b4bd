"""The clock of a server in this process, which a test holds."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from syncbeat_server.app import process
from syncbeat_server.clock import SystemClock


class HeldClock(SystemClock):
    """A server's clock: its date stands still until the test moves it or lets it go on, however long that takes.

    Elapsed time goes on with the machine's, and with what the date is moved by; whoever sleeps does so in real time.
    """

    def __init__(self) -> None:
        self._held_at: datetime | None = super().now().replace(microsecond=0)
        self._behind = timedelta(0)
        self._moved_s = 0.0

    @classmethod
    def of_servers(cls, monkeypatch: pytest.MonkeyPatch) -> HeldClock:
        """The clock of those servers that start from here on in the test."""
        made = cls()
        monkeypatch.setattr(process, "SystemClock", lambda: made)
        return made

    def now(self) -> datetime:
        """Return where the date stands."""
        return super().now() - self._behind if self._held_at is None else self._held_at

    def monotonic(self) -> float:
        """The machine's, and what the date was moved by."""
        return super().monotonic() + self._moved_s

    def move(self, seconds: float) -> None:
        """Move date and elapsed time; the date stands still there."""
        self._held_at = self.now() + timedelta(seconds=seconds)
        self._moved_s += seconds

    def go_on(self) -> None:
        """Let the date go on from where it stands."""
        self._behind = super().now() - self.now()
        self._held_at = None
