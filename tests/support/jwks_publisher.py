"""An issuer that publishes its keys over real HTTP, and the store that reads them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from syncbeat_server.auth.model import Issuer
from syncbeat_server.auth.tokens.jwks import JwksStore
from tests.support.fake_clock import FakeClock, wait_until

ISSUER = Issuer("default", "https://issuer.example")
KEY = ec.generate_private_key(ec.SECP256R1())


def entry(kid: str, **changes: Any) -> dict[str, Any]:
    public = jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    return {**public, "kid": kid, "alg": "ES256", "use": "sig", **changes}


def document(*kids: str) -> bytes:
    return json.dumps({"keys": [entry(kid) for kid in kids]}).encode()


class Publisher:
    """An issuer's HTTP endpoint: counts requests, answers what it is told to, and can be away."""

    def __init__(self) -> None:
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._document
        self.body = document("k1")
        self.requests = 0
        self.away = False
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.away:
            assert request.transport is not None
            request.transport.abort()
        return await self.answer(request)

    async def _document(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.body, content_type="application/json")


def clock_of(store: JwksStore) -> FakeClock:
    return cast(FakeClock, store._clock)


async def rests(store: JwksStore) -> None:
    """Return when the store's own loop sleeps: the clock may be moved then."""
    await wait_until(lambda: store._fetching is None and clock_of(store).sleepers)


async def pass_time(store: JwksStore, seconds: float) -> None:
    """Move the clock, and let each fetch of the store's loop end before time goes on."""
    clock = clock_of(store)
    end_s = clock.monotonic() + seconds
    while clock.monotonic() < end_s:
        await clock.advance(min(clock.until_next_s(), end_s - clock.monotonic()))
        await rests(store)


@asynccontextmanager
async def running(store: JwksStore) -> AsyncIterator[asyncio.Future[None]]:
    """The store's own loop, past its first fetch."""
    task = asyncio.ensure_future(store.run())
    await rests(store)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
