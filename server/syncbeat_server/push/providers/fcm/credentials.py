"""Access tokens for FCM: one cache, refreshed off the loop, before the old one ends."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from firebase_admin import credentials

from syncbeat_server.clock import Clock
from syncbeat_server.ops.files import read_file

_REFRESH_BEFORE = timedelta(minutes=5)
# google-auth gives the token endpoint two minutes, and three tries: too long for a delivery to wait for.
_WAIT_S = 10.0


class NoAccessToken(Exception):
    """The token endpoint refuses or does not answer; the cause says what google-auth made of it."""


class AccessTokens:
    """The bearer token of one service account."""

    def __init__(self, account: Path | bytes, clock: Clock) -> None:
        """`account` is the JSON of a service account, or the file that holds it. Raises ValueError: it is none."""
        document = _document(read_file(account) if isinstance(account, Path) else account)
        self.token_uri = str(document.get("token_uri", ""))
        self._certificate = credentials.Certificate(document)
        self._clock = clock
        self._refreshing: asyncio.Task[None] | None = None
        self._token = ""
        self._refresh_at = datetime.min.replace(tzinfo=UTC)

    @property
    def project_id(self) -> str:
        """The Firebase project."""
        return str(self._certificate.project_id)

    async def current(self, *, refused: str = "") -> str:
        """A token that is still good. `refused`: one that FCM did not take, so it is not given again.

        Who asks while one is fetched shares its fate: a token endpoint that is down is asked once, not once each.

        Raises:
            NoAccessToken: there is none to be had now.
        """
        if self._token and self._token != refused and self._clock.now() < self._refresh_at:
            return self._token
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        try:
            async with asyncio.timeout(_WAIT_S):
                await asyncio.shield(self._refreshing)
        except Exception as error:  # google-auth raises many kinds
            raise NoAccessToken from error
        return self._token

    async def _refresh(self) -> None:
        # get_access_token blocks (requests), and is the public call that starts no background thread.
        fresh = await asyncio.to_thread(self._certificate.get_access_token)
        expires_at = fresh.expiry.replace(tzinfo=UTC)
        self._refresh_at = expires_at - min(_REFRESH_BEFORE, (expires_at - self._clock.now()) / 2)
        self._token = str(fresh.access_token)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # heard, even if nobody waits for it any more


def _document(account: bytes) -> dict[str, object]:
    try:
        document = json.loads(account)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # The project stands in the address of each send; google-auth takes an account without one.
    if not isinstance(document, dict) or not isinstance(document.get("project_id"), str):
        raise ValueError("no object with a project_id")
    return document
