"""Sends messages to FCM over a pool of kept connections."""

from __future__ import annotations

import logging

import aiohttp

from syncbeat_server.clock import Clock
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.providers import HttpRule, Message, answers
from syncbeat_server.push.providers.fcm.credentials import AccessTokens, NoAccessToken
from syncbeat_server.push.providers.fcm.errors import CONFIG_ERROR, classify
from syncbeat_server.push.providers.fcm.message import Encoder
from syncbeat_server.push.providers.http_session import open_session

_log = logging.getLogger(__name__)


class FcmProvider:
    """Sends the messages of one app to FCM, HTTP v1."""

    def __init__(self, tokens: AccessTokens, base_url: str, rule: HttpRule, clock: Clock) -> None:
        """Open no connection yet. Raises NoProxy: the rule, or the environment, names a proxy that is none."""
        self._tokens = tokens
        self._clock = clock
        self._encoder = Encoder()
        self._url = f"{base_url.rstrip('/')}/v1/projects/{tokens.project_id}/messages:send"
        self._session = open_session(self._url, rule, {"content-type": "application/json"})

    async def send(self, message: Message) -> Outcome:
        """Make one attempt, and after a 401 another with a fresh access token."""
        try:
            body = self._encoder.encode(message)
        except ValueError as error:
            _log.warning("message refused by FCM's encoder", extra={"error": str(error)})
            return Outcome(Verdict.REJECTED, Reason.REJECTED)
        outcome, token = await self._attempt(body, refused="")
        if outcome is None:
            outcome, _ = await self._attempt(body, refused=token)
        return outcome or CONFIG_ERROR

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _attempt(self, body: bytes, *, refused: str) -> tuple[Outcome | None, str]:
        """Return the outcome, None if FCM did not accept the access token, and that token."""
        try:
            token = await self._tokens.current(refused=refused)
        except NoAccessToken as none:
            held_s = none.held_s or None
            return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, retry_after_s=held_s, blame=Blame.ACCESS), ""
        headers = {"authorization": f"Bearer {token}"}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                text = await answers.read(answer)
                asked_s = answers.retry_after_s(answer.headers.get("retry-after"), self._clock)
                return classify(answer.status, text, asked_s), token
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError):
            return Outcome(Verdict.RETRY, Reason.UNAVAILABLE), token
        except (aiohttp.ClientError, TimeoutError, OSError):
            # The request may have been read: the device may have it already.
            return Outcome(Verdict.RETRY, Reason.AMBIGUOUS), token
