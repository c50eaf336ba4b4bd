"""The table of limits says of each what the code does, with Redis and without it."""

from __future__ import annotations

import pytest

from syncbeat_server.defaults import DEVICES_PER_USER
from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.push.policy.wake_budget import wake_budget
from syncbeat_server.ratelimit import catalog
from syncbeat_server.ratelimit.catalog import CATALOG, Counted, Limit, WithoutRedis
from syncbeat_server.sync.streams.open_stream_limits import OpenStreamLimits
from tools.limits_page import page

pytestmark = pytest.mark.unit


def default(name: str) -> object:
    return Settings.model_fields[name].default


def burst_of(platform: str) -> float:
    budget = wake_budget(platform)
    assert budget is not None
    return budget.burst


@pytest.mark.parametrize(
    ("limit", "in_code"),
    [
        (catalog.DEVICES_OF_USER, DEVICES_PER_USER),
        (catalog.SCOPES_OF_USER, MAX_SCOPES),
        (catalog.MOVES_OF_TOKEN, 10),
        (catalog.RELEASES_OF_TOKEN, 100),
        (catalog.STREAMS_OF_USER, OpenStreamLimits().per_user),
        (catalog.STREAMS_OF_DEVICE, OpenStreamLimits().per_device),
        (catalog.STREAMS_OF_USER, default("streams_per_user")),
        (catalog.STREAMS_OF_DEVICE, default("streams_per_device")),
        (catalog.CALLS_IN_FLIGHT, default("max_in_flight")),
        (catalog.REFRESHES_OF_SESSION, default("refreshes_per_minute")),
        (catalog.FORGED_REFRESHES, default("wrong_refreshes_per_minute")),
        (catalog.WAKES_OF_ANDROID, burst_of("ANDROID")),
        (catalog.WAKES_OF_IOS, burst_of("IOS")),
    ],
)
def test_limit_table_has_the_bounds_of_the_code(limit: Limit, in_code: object) -> None:
    assert limit.bound.capacity == in_code
    assert limit.default.startswith(f"{in_code:,.0f}")


def test_limit_table_says_of_each_limit_what_it_does_without_redis() -> None:
    assert len({one.name for one in CATALOG}) == len(CATALOG)
    assert set(CATALOG) == {one for one in vars(catalog).values() if isinstance(one, Limit)}
    for one in CATALOG:
        if one.counted is not Counted.REDIS:
            assert one.without_redis in (WithoutRedis.SAME, WithoutRedis.CLOSED)
        else:
            assert one.without_redis in (WithoutRedis.OPEN, WithoutRedis.EIGHTH)
        assert f"| {one.name} | {one.default} | {one.counted} | {one.without_redis} | {one.refusal} |\n" in page()
