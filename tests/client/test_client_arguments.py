"""Arguments of the Python client that cannot be meant are refused at once, by their name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from syncbeat import ClientRule, SmartSync, SyncbeatClient, blocking

pytestmark = pytest.mark.unit

ADDRESS = "127.0.0.1:1"


@pytest.mark.parametrize("heartbeat_s", [0, -30.0, 4.9, 300.1, math.nan, math.inf, True, "30"])
async def test_heartbeat_that_the_server_refuses_is_refused_by_watch(heartbeat_s: Any) -> None:
    async with SyncbeatClient(ADDRESS, tls=False) as client:
        with pytest.raises(ValueError, match=r"^heartbeat_s: want a number, 5 to 300$"):
            client.watch(heartbeat_s=heartbeat_s)


async def test_watch_token_without_all_scopes_is_refused() -> None:
    async with SyncbeatClient(ADDRESS, tls=False) as client:
        with pytest.raises(ValueError, match="token: only with all_scopes"):
            client.watch(token="kept")


@pytest.mark.parametrize("timeout_s", [0, -1.0, math.nan, math.inf, None])
async def test_timeout_that_no_call_can_have_is_refused(timeout_s: Any) -> None:
    for make in (SyncbeatClient, blocking.SyncbeatClient):
        with pytest.raises(ValueError, match="timeout_s: want a number"):
            make(ADDRESS, tls=False, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("page_size", 0),
        ("page_size", 1_001),
        ("first_delay_s", -0.5),
        ("max_delay_s", math.nan),
        ("connection_spacing_s", -1),
        ("max_cursors_beside_token", -1),
    ],
)
def test_client_rule_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: want a number"):
        ClientRule(**{name: value})


async def test_smart_sync_without_a_device_is_refused() -> None:
    async with SyncbeatClient(ADDRESS, tls=False) as client:
        with pytest.raises(ValueError, match="device_id"):
            SmartSync(client, "")
