"""Obtains access tokens for FCM: one cached token, renewed in the background well before it expires.

They are fetched like the sends, by the same library and through the same proxy. google-auth would block a thread for
minutes on an endpoint that hangs, and finds proxies and certificates in ways of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from pathlib import Path

import aiohttp
import jwt
from firebase_admin import credentials

from syncbeat_server.clock import Clock
from syncbeat_server.ops.files import read_file
from syncbeat_server.push.providers import answers
from syncbeat_server.push.providers.outgoing_proxy import proxy_for

_log = logging.getLogger(__name__)

_REFRESH_BEFORE_S = 300.0
# For one request with its answer: a delivery waits for it. Google's endpoint takes a fraction of a second.
_WAIT_S = 10.0
# Pause after the second failure in a row, doubled after each further one.
_FIRST_HOLD_S = 1.0
_LONGEST_HOLD_S = 10.0
_LONGEST_LIFE_S = 86_400.0  # Google's live for an hour
_ASSERTION_LIFE_S = 3600  # the most that Google takes
_GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523
_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
# The same wherever an account's token_uri leads, as in google-auth.
_AUDIENCE = "https://oauth2.googleapis.com/token"


class NoAccessToken(Exception):
    """Raised if the token endpoint refuses, or does not answer. `held_s`: seconds until it is asked again."""

    def __init__(self, held_s: float) -> None:
        super().__init__("no access token for FCM")
        self.held_s = held_s


class _Refused(Exception):
    """Raised if the token endpoint answered without a token."""


class AccessTokens:
    """Holds the bearer token of one service account."""

    def __init__(self, account: Path | bytes, clock: Clock, *, proxy: str = "") -> None:
        """`account` is the JSON of a service account, or the file that holds it; for `proxy` see `proxy_for`.

        Raises:
            ValueError: it is no service account, or the proxy is none (NoProxy).
        """
        document = _document(read_file(account) if isinstance(account, Path) else account)
        self.token_uri = str(document.get("token_uri", ""))
        self._certificate = credentials.Certificate(document)  # also rejects malformed keys
        self._private_key, self._key_id = str(document["private_key"]), str(document.get("private_key_id") or "")
        self._clock = clock
        self._proxy = proxy_for(self.token_uri, proxy)
        self._minting: asyncio.Task[None] | None = None
        self._token = ""
        self._renew_at = self._ends_at = self._held_until = 0.0
        self._failures = 0

    @property
    def project_id(self) -> str:
        """Name of the Firebase project."""
        return str(self._certificate.project_id)

    async def current(self, *, refused: str = "") -> str:
        """Return a valid token; not `refused`, which FCM did not accept.

        A token near its end is still returned while the next one is fetched. Callers that come while there is none
        share the result of the first one's request, so that a token endpoint that is down is asked once, not once by
        each.

        Raises:
            NoAccessToken: there is none to be had now.
        """
        now = self._clock.monotonic()
        held_s = max(0.0, self._held_until - now)
        if self._token and self._token != refused and now < self._ends_at:
            if now >= self._renew_at and not held_s:
                self._mint()
            return self._token
        if self._minting is None and held_s:
            raise NoAccessToken(held_s)
        try:
            await asyncio.shield(self._mint())
        except Exception as error:
            raise NoAccessToken(max(0.0, self._held_until - self._clock.monotonic())) from error
        return self._token

    def _mint(self) -> asyncio.Task[None]:
        if self._minting is None:
            self._minting = asyncio.get_running_loop().create_task(self._renew())
            self._minting.add_done_callback(self._minted)
        return self._minting

    async def _renew(self) -> None:
        asked_at = self._clock.monotonic()
        # Both take milliseconds of CPU, off the loop.
        assertion = await asyncio.to_thread(self._assertion)
        trust = await asyncio.to_thread(ssl.create_default_context)
        form = {"grant_type": _GRANT_TYPE, "assertion": assertion}
        async with (
            asyncio.timeout(_WAIT_S),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trust),
                proxy=self._proxy,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=answers.PLAIN,
                auto_decompress=False,
            ) as session,
            session.post(self.token_uri, data=form, allow_redirects=False) as answer,
        ):
            token, life_s = _token_of(answer.status, await answers.read(answer))
        self._token = token
        self._ends_at = asked_at + life_s
        self._renew_at = self._ends_at - min(_REFRESH_BEFORE_S, life_s / 2)

    def _assertion(self) -> str:
        now = int(self._clock.now().timestamp())
        claims = {
            "iss": self._certificate.service_account_email,
            "aud": _AUDIENCE,
            "scope": _SCOPE,
            "iat": now,
            "exp": now + _ASSERTION_LIFE_S,
        }
        return jwt.encode(claims, self._private_key, "RS256", {"kid": self._key_id} if self._key_id else None)

    def _minted(self, task: asyncio.Task[None]) -> None:
        self._minting = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._failures = 0
            return
        self._failures += 1
        if self._failures > 1:
            hold_s = min(_LONGEST_HOLD_S, _FIRST_HOLD_S * 2.0 ** min(self._failures - 2, 10))
            self._held_until = self._clock.monotonic() + hold_s
        _log.warning("no new access token for FCM", extra={"error": repr(error)})


def _token_of(status: int, text: bytes) -> tuple[str, float]:
    """Return the token of an answer, and the seconds for which it is valid. Raises _Refused if it holds none."""
    answer = answers.parse(text)
    token, life_s = answer.get("access_token"), answer.get("expires_in")
    # It goes into a header, where a line break would begin another header.
    good = isinstance(token, str) and token.isascii() and token.isprintable() and token and " " not in token
    if status != 200 or not good or isinstance(life_s, bool) or not isinstance(life_s, int | float) or life_s <= 0:
        raise _Refused(f"{status} {str(answer.get('error', ''))[:100]}")
    return str(token), min(_LONGEST_LIFE_S, life_s)


def _document(account: bytes) -> dict[str, object]:
    try:
        document = json.loads(account)
    except RecursionError:
        raise ValueError("nested too deep") from None
    # The project is part of the URL of each send; google-auth accepts an account without one.
    if not isinstance(document, dict) or not isinstance(document.get("project_id"), str):
        raise ValueError("no object with a project_id")
    return document
