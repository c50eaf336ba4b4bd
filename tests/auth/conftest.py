"""Fixtures of the tests of auth: an issuer that publishes its keys over real HTTP, and the store that reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from syncbeat_server.auth.tokens.jwks import JwksStore
from tests.support.fake_clock import FakeClock
from tests.support.http_sites import site
from tests.support.jwks_publisher import ISSUER, Publisher


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    made = Publisher()
    async with site("/{rest:.*}", made.handle) as address:
        made.url = f"{address}/jwks.json"
        yield made


@pytest.fixture
async def store(publisher: Publisher, clock: FakeClock) -> AsyncIterator[JwksStore]:
    made = JwksStore(publisher.url, ISSUER, clock, timeout_s=20.0)  # no pause of a busy machine is taken for an outage
    yield made
    await made.close()
