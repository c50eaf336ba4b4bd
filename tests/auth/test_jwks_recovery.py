"""An issuer that was away for a moment, or rotated its keys: found out by the store itself, whoever asks."""

from __future__ import annotations

import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.errors import DependencyDown
from tests.support.jwks_publisher import Publisher, document, entry, pass_time, running

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


async def test_jwks_rotation_is_logged_once_with_the_kids(
    store: JwksStore, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    other = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    async with running(store):
        await pass_time(store, 400)
        publisher.body = document("k1", "k2")
        await pass_time(store, 800)
        await store.flush()
        publisher.body = document("k2")
        await pass_time(store, 400)
        publisher.body = json.dumps({"keys": [entry("k2", x=other["x"], y=other["y"])]}).encode()
        await pass_time(store, 400)
    told = [record.__dict__ for record in caplog.records if record.message == "the keys of an issuer changed"]
    names = ("added", "removed", "replaced")
    assert [{name: record[name] for name in names if name in record} for record in told] == [
        {"added": ["k2"]},
        {"removed": ["k1"]},
        {"replaced": ["k2"]},
    ]
    assert {record["issuer"] for record in told} == {store.issuer.name}
