"""Sends to FCM over a pool of kept connections, and says of each answer what it means.

Only `FcmError.errorCode`, or a 400 that names `message.token`, condemns a token: a bare 404 may be a wrong project, and
another 400 our own bad payload. What
a proxy in between wrote and not FCM (HTML, nothing, half of something), means what its status means:

- 200: it was taken. Another 2xx: somebody took it, but who? It may be a delivery, and is tried again.
- 401: the access token was not taken. 403, 404: the project or the address is wrong.
- 413: the message is too large. 429: slower. Everything else, redirects too: FCM was not reached.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import replace
from typing import Any

import aiohttp

from syncbeat_server.clock import Clock
from syncbeat_server.defaults import DELIVERY_TIMEOUT_S
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.providers import Message, answers
from syncbeat_server.push.providers.fcm.credentials import AccessTokens, NoAccessToken
from syncbeat_server.push.providers.fcm.message import Encoder
from syncbeat_server.push.providers.proxies import proxy_for

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
# Of the service account or the project, not of this message: no message is to be lost for it, nor an attempt.
# Whether the app is to pause for it depends on the others, of which this message knows nothing: see `Gate`.
_CONFIG = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)

# Of the key for APNs or for web push in the project, which the other platforms do without.
_PLATFORM = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.PLATFORM)
_UNREACHED = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
# All of the reference of `ErrorCode`, and what firebase-admin knows beside it. Whatever else FCM may say is no fault
# of the app's credentials: it is judged by its HTTP status.
_OUTCOMES: dict[str, Outcome] = {
    "UNREGISTERED": Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED),
    "SENDER_ID_MISMATCH": Outcome(Verdict.REJECTED, Reason.WRONG_SENDER),
    "QUOTA_EXCEEDED": Outcome(Verdict.RETRY, Reason.THROTTLED),
    "UNAVAILABLE": _UNREACHED,
    "INTERNAL": _UNREACHED,
    "UNSPECIFIED_ERROR": _UNREACHED,
    "THIRD_PARTY_AUTH_ERROR": _PLATFORM,
    "APNS_AUTH_ERROR": _PLATFORM,
    "INVALID_ARGUMENT": Outcome(Verdict.REJECTED, Reason.REJECTED),
}


class FcmProvider:
    """One app's way to FCM. `timeout_s` is for one attempt, with its answer."""

    def __init__(
        self,
        tokens: AccessTokens,
        base_url: str,
        in_flight: int,
        clock: Clock,
        *,
        timeout_s: float = DELIVERY_TIMEOUT_S,
        proxy: str = "",
    ) -> None:
        """Open nothing yet; for `proxy` see `proxy_for`. Raises NoProxy: it is none."""
        self._tokens = tokens
        self._clock = clock
        self._encoder = Encoder()
        self._url = f"{base_url.rstrip('/')}/v1/projects/{tokens.project_id}/messages:send"
        self._session = aiohttp.ClientSession(
            # A context of its own: aiohttp's dates from its import, and knows no SSL_CERT_FILE that was set later.
            connector=aiohttp.TCPConnector(limit=in_flight, ssl=ssl.create_default_context()),
            proxy=proxy_for(self._url, proxy),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
            headers=answers.PLAIN,
            auto_decompress=False,  # of what is broken, aiohttp raises where the head is all one needs
        )

    async def send(self, message: Message) -> Outcome:
        """One attempt; after a 401 once more with a fresh access token."""
        try:
            body = self._encoder.encode(message)
        except ValueError as error:
            _log.warning("message refused by FCM's encoder", extra={"error": str(error)})
            return Outcome(Verdict.REJECTED, Reason.REJECTED)
        outcome, token = await self._attempt(body, refused="")
        if outcome is None:
            outcome, _ = await self._attempt(body, refused=token)
        return outcome or _CONFIG

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _attempt(self, body: bytes, *, refused: str) -> tuple[Outcome | None, str]:
        # None: FCM did not take this access token.
        try:
            token = await self._tokens.current(refused=refused)
        except NoAccessToken as none:
            held_s = none.held_s or None
            return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, retry_after_s=held_s, blame=Blame.ACCESS), ""
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                text = await answers.read(answer)
                return self._classify(answer.status, text, answer.headers.get("retry-after")), token
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError):
            return Outcome(Verdict.RETRY, Reason.UNAVAILABLE), token
        except (aiohttp.ClientError, TimeoutError, OSError):
            # The request may have been read: the device may have it already.
            return Outcome(Verdict.RETRY, Reason.AMBIGUOUS), token

    def _classify(self, status: int, text: bytes, retry_after: str | None) -> Outcome | None:
        answer = answers.parse(text)
        if status == 200:
            # FCM took it. An answer that cannot be read changes nothing about that.
            return Outcome(Verdict.SENT, provider_message_id=str(answer.get("name", ""))[:256])
        code = _fcm_code(answer)
        if status == 401 and not code:
            return None
        if status == 400 and _names_token(answer):
            return Outcome(Verdict.INVALID_TOKEN, Reason.UNREGISTERED)
        outcome = _OUTCOMES.get(code) or _by_status(status, answer, known=bool(code))
        return replace(outcome, retry_after_s=answers.retry_after_s(retry_after, self._clock.now()))


def _by_status(status: int, answer: dict[str, Any], *, known: bool) -> Outcome:
    """Return what a status means without a code that says it; `known`: FCM knew the app well enough to name one."""
    if status == 429:
        return _OUTCOMES["QUOTA_EXCEEDED"]
    if status in (401, 403, 404):
        return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG) if known else _CONFIG
    if status == 413 or (status == 400 and isinstance(answer.get("error"), dict)):
        return Outcome(Verdict.REJECTED, Reason.REJECTED)
    return Outcome(Verdict.RETRY, Reason.AMBIGUOUS) if 200 <= status < 300 else _UNREACHED


def _fcm_code(answer: dict[str, Any]) -> str:
    return next((str(detail.get("errorCode", "")) for detail in _details(answer, _FCM_ERROR)), "")


def _names_token(answer: dict[str, Any]) -> bool:
    """Whether a bad request is so for its token, which we only hand on, and not for the rest, which we made."""
    for detail in _details(answer, _BAD_REQUEST):
        violations = detail.get("fieldViolations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict) and violation.get("field") == "message.token":
                return True
    return False


def _details(answer: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    error = answer.get("error")
    details = error.get("details") if isinstance(error, dict) else None
    found = details if isinstance(details, list) else []
    return [detail for detail in found if isinstance(detail, dict) and detail.get("@type") == kind]
