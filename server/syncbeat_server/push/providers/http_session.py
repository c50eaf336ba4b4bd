"""Opens the HTTP session of a provider: limits, time-outs, proxy and TLS are the same for all of them."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp
from aiohttp.abc import AbstractResolver

from syncbeat_server.push.providers import HttpRule, answers
from syncbeat_server.push.providers.outgoing_proxy import proxy_for

_CONNECT_TIMEOUT_S = 5.0


def open_session(
    url: str, rule: HttpRule, headers: Mapping[str, str] | None = None, resolver: AbstractResolver | None = None
) -> aiohttp.ClientSession:
    """Return a session for requests to `url`, with no connection open yet.

    `resolver` looks up names unless a proxy does so.

    Raises:
        NoProxy: the rule, or the environment, names a proxy that is none.
    """
    proxy = proxy_for(url, rule.proxy)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=rule.max_in_flight,
            # A context of its own: aiohttp's dates from its import, and misses an SSL_CERT_FILE that was set later.
            ssl=ssl.create_default_context(),
            resolver=None if proxy else resolver,
        ),
        proxy=proxy,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=rule.timeout_s, connect=min(_CONNECT_TIMEOUT_S, rule.timeout_s)),
        headers={**answers.PLAIN, **(headers or {})},
        # Decompressed by `answers`: of a broken body aiohttp raises, where the head is all that is needed.
        auto_decompress=False,
    )
