"""Hands deliveries to a relay of yours by HTTP: for devices that FCM does not reach, or while it cannot be reached."""

from __future__ import annotations

import ssl
from dataclasses import replace

import aiohttp
import orjson

from syncbeat_server.clock import Clock
from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.providers import Message, answers
from syncbeat_server.push.providers.addresses import PublicOnly
from syncbeat_server.push.providers.proxies import proxy_for

_CONNECT_TIMEOUT_S = 5.0


class WebhookProvider:
    """POSTs each message as JSON. 2xx: it was taken. 404 or 410 with `{"unregistered": true}`: the token is dead.

    Without that they are about the one message, as 400, 413 and 422 are; 401 and 403 are about the relay's token. A
    redirect is not followed: whoever answers it is not whom the operator named.
    """

    def __init__(
        self,
        url: str,
        token: str,
        in_flight: int,
        timeout_s: float,
        clock: Clock,
        *,
        private: bool = False,
        proxy: str = "",
    ) -> None:
        """`token`: the bearer token that the relay knows us by; '' for none. `private`: it may be no public one.

        For `proxy` see `proxy_for`: where one leads to the relay, it is the one who looks up names and lets through.

        Raises:
            NoProxy: it is none.
        """
        way = proxy_for(url, proxy)
        self._url = url
        self._clock = clock
        headers = {"content-type": "application/json", **answers.PLAIN} | (
            {"authorization": f"Bearer {token}"} if token else {}
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=in_flight, ssl=ssl.create_default_context(), resolver=None if private or way else PublicOnly()
            ),
            proxy=way,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
            headers=headers,
            auto_decompress=False,
        )

    async def send(self, message: Message) -> Outcome:
        """One attempt."""
        try:
            async with self._session.post(self._url, data=_body(message), allow_redirects=False) as answer:
                outcome = _classify(answer.status, await answers.read(answer))
                if outcome.verdict is not Verdict.RETRY:
                    return outcome
                asked = answers.retry_after_s(answer.headers.get("retry-after"), self._clock.now())
                return replace(outcome, retry_after_s=asked)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError):
            return Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Outcome(Verdict.RETRY, Reason.AMBIGUOUS)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def _body(message: Message) -> bytes:
    delivery, content = message.delivery, message.content
    return orjson.dumps(
        {
            "delivery_id": delivery.delivery_id,
            "ack_token": message.ack_token,
            "kind": delivery.kind,
            "platform": delivery.platform,
            "registration_token": delivery.registration_token,
            "ttl_s": delivery.kept_s,
            "priority": delivery.lane.name,
            "collapse_key": delivery.collapse_key,
            "type": delivery.type,
            "cursor": {"scope": delivery.scope, "epoch": delivery.epoch, "sequence": delivery.sequence},
            "other_scopes": delivery.other_scopes,
            "content": content,
        }
    )


def _classify(status: int, text: bytes) -> Outcome:
    if 200 <= status < 300:
        return Outcome(Verdict.SENT)
    if status in (404, 410) and answers.parse(text).get("unregistered") is True:
        return Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)
    if status in (401, 403):
        return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)
    if status in (400, 404, 410, 413, 422):
        return Outcome(Verdict.REJECTED, Reason.REJECTED)
    return Outcome(Verdict.RETRY, Reason.THROTTLED if status == 429 else Reason.UNAVAILABLE)
