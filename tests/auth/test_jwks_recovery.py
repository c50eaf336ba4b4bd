"""An issuer that was away for a moment: found back by the store itself, whoever asks."""

from __future__ import annotations

import pytest

from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.errors import DependencyDown
from tests.support.jwks_publisher import Publisher, document, pass_time, running

pytestmark = pytest.mark.http


async def test_jwks_outage_met_by_a_new_key_is_over_in_seconds(store: JwksStore, publisher: Publisher) -> None:
    async with running(store):
        publisher.away = True
        publisher.body = document("k2")
        with pytest.raises(DependencyDown) as raised:
            await store.find_key("k2", "ES256")
        assert raised.value.retry_after_s == 1.0
        # Nobody else asks: the store does so by itself, and tells those who wait when.
        await pass_time(store, 60.0)
        with pytest.raises(DependencyDown) as raised:
            await store.find_key("k2", "ES256")
        assert raised.value.retry_after_s <= 11.0
        publisher.away = False
        await pass_time(store, 11.0)
        assert store.cached_key("k2", "ES256") is not None


async def test_jwks_flush_met_by_an_outage_is_repeated_in_seconds(store: JwksStore, publisher: Publisher) -> None:
    async with running(store):
        publisher.away = True
        await store.flush()
        assert store.cached_key("k1", "ES256") is None
        publisher.away = False
        await pass_time(store, 2.0)
        assert store.cached_key("k1", "ES256") is not None
