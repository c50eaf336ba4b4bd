"""Fixtures of the tests of auth: an issuer that publishes its keys over real HTTP, a server with several issuers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syncbeat_server.auth.tokens.jwks import JwksStore
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import FakeClock
from tests.support.http_sites import site
from tests.support.identities import FIRST_ISSUER, apps_file
from tests.support.jwks_publisher import ISSUER, Publisher
from tests.support.rpc_server import Server, running_server


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


@pytest.fixture
async def joined(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server whose new issuer may join users of the first by e-mail; the other issuer may not."""
    file = apps_file(tmp_path, new=f'email_joins = "{FIRST_ISSUER}"', other='unknown_users = "refuse"')
    async with running_server(database_urls, redis_url, APPS_FILE=file) as server:
        yield server
