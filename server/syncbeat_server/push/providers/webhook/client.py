"""Posts deliveries to the relay, over a pool of kept connections."""

from __future__ import annotations

from dataclasses import dataclass, replace

import aiohttp

from syncbeat_server.clock import Clock
from syncbeat_server.ops.tracing.spans import trace_headers
from syncbeat_server.push.model import Outcome, Reason, Verdict
from syncbeat_server.push.providers import HttpRule, Message, answers
from syncbeat_server.push.providers.http_session import open_session
from syncbeat_server.push.providers.private_addresses import PublicOnly
from syncbeat_server.push.providers.webhook.errors import classify
from syncbeat_server.push.providers.webhook.message import encode


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """Address of a relay, and the bearer token that it knows us by; '' for none.

    `private`: its name may lead to an address that is not public.
    """

    url: str
    token: str = ""
    private: bool = False


class WebhookProvider:
    """Posts each message as JSON, for devices that FCM does not reach, or as the fallback of FCM.

    A redirect is not followed: whoever answers it is not whom the operator named.
    """

    def __init__(self, relay: RelayAddress, rule: HttpRule, clock: Clock) -> None:
        """Open no connection yet. A proxy that leads to the relay looks up its name, and decides what it lets through.

        Raises:
            NoProxy: the rule, or the environment, names a proxy that is none.
        """
        self._url = relay.url
        self._clock = clock
        headers = {"content-type": "application/json"}
        if relay.token:
            headers["authorization"] = f"Bearer {relay.token}"
        self._session = open_session(relay.url, rule, headers, None if relay.private else PublicOnly())

    async def send(self, message: Message) -> Outcome:
        """Make one attempt."""
        try:
            # The relay is the operator's own, so it gets the trace; Google does not.
            headers = trace_headers()
            async with self._session.post(
                self._url, data=encode(message), headers=headers, allow_redirects=False
            ) as answer:
                outcome = classify(answer.status, await answers.read(answer))
                if outcome.verdict is not Verdict.RETRY:
                    return outcome
                asked_s = answers.retry_after_s(answer.headers.get("retry-after"), self._clock)
                return replace(outcome, retry_after_s=asked_s)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError):
            return Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
        except (aiohttp.ClientError, TimeoutError, OSError):
            # The request may have been read: the device may have it already.
            return Outcome(Verdict.RETRY, Reason.AMBIGUOUS)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
