"""Access tokens for FCM: one cache, refreshed off the loop, before the old one ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from firebase_admin import credentials

from syncbeat_server.clock import Clock

_REFRESH_BEFORE = timedelta(minutes=5)


class AccessTokens:
    """The bearer token of one service account."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._certificate = credentials.Certificate(str(path))
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token = ""
        self._expires_at = datetime.min.replace(tzinfo=UTC)
        self._refresh_at = self._expires_at

    @property
    def project_id(self) -> str:
        """The Firebase project."""
        return str(self._certificate.project_id)

    async def current(self, *, refused: str = "") -> str:
        """A token that is still good. `refused`: one that FCM did not take, so it is not given again.

        Raises:
            Exception: whatever google-auth raises when the token endpoint refuses or does not answer.
        """
        if self._usable(refused):
            return self._token
        async with self._lock:
            if not self._usable(refused):
                # get_access_token blocks (requests), and is the public call that starts no background thread.
                fresh = await asyncio.to_thread(self._certificate.get_access_token)
                now = self._clock.now()
                self._expires_at = fresh.expiry.replace(tzinfo=UTC)
                life = self._expires_at - now
                self._refresh_at = self._expires_at - min(_REFRESH_BEFORE, life / 2)
                self._token = str(fresh.access_token)
            return self._token

    def _usable(self, refused: str) -> bool:
        return bool(self._token) and self._token != refused and self._clock.now() < self._refresh_at
