"""A registration token lives on one device: what moves it, what takes it away, and what waited for who had it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat.v1 import directory_service_pb2 as pb
from syncbeat_server.defaults import DEVICES_PER_USER
from syncbeat_server.ratelimit.catalog import MOVES_OF_TOKEN, RELEASES_OF_TOKEN
from tests.support.rpc_server import Refusal, Server

pytestmark = pytest.mark.rpc

LIMITED = ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
NONE, ACTIVE, MOVED = pb.TOKEN_STATE_NONE, pb.TOKEN_STATE_ACTIVE, pb.TOKEN_STATE_MOVED
MOVES, RELEASES = int(MOVES_OF_TOKEN.bound.capacity), int(RELEASES_OF_TOKEN.bound.capacity)


async def register(server: Server, user: str, token: str = "t", device: str = "phone") -> int:
    request = pb.RegisterDeviceRequest(device_id=device, platform=pb.PLATFORM_IOS, registration_token=token)
    return int((await server.user(user)(request)).device.token_state)


async def refused(server: Server, user: str, token: str = "t", device: str = "phone") -> Refusal:
    request = pb.RegisterDeviceRequest(device_id=device, platform=pb.PLATFORM_IOS, registration_token=token)
    return await server.user(user).refusal(request)


async def state(server: Server, user: str, device: str = "phone") -> int:
    answer = await server.backend(pb.GetDeviceRequest(user_id=user, device_id=device))
    return int(answer.device.token_state)


async def devices_of(server: Server, user: str) -> list[str]:
    return [device.device_id for device in (await server.backend(pb.ListDevicesRequest(user_id=user))).devices]


async def send(server: Server, user: str) -> None:
    await server.backend(
        push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=[user]), notification=core_pb2.Notification(title="for you alone")
        )
    )


async def waiting(server: Server, user: str) -> list[tuple[str, str]]:
    """The deliveries of a user: state and reason."""
    request = push_service_pb2.ListDeliveriesRequest(filter=push_service_pb2.DeliveryFilter(user_id=user))
    found = (await server.backend(request)).deliveries
    names, reasons = push_service_pb2.DeliveryState.Name, push_service_pb2.DeliveryReason.Name
    return [
        (names(d.state).removeprefix("DELIVERY_STATE_"), reasons(d.reason).removeprefix("DELIVERY_REASON_"))
        for d in found
    ]


async def audited(server: Server) -> list[tuple[str, str, str, bool]]:
    """The audit trail of tokens: from, to, by whom, and whether the move was refused."""
    conn = await asyncpg.connect(server.urls.admin_url)
    try:
        rows = await conn.fetch("SELECT from_user_id, to_user_id, caller, refused FROM token_moves ORDER BY move_id")
    finally:
        await conn.close()
    return [tuple(row) for row in rows]


async def move_often(server: Server) -> str:
    """Move the token as often as it may be moved a day; who has it then."""
    for index in range(MOVES + 1):
        assert await register(server, f"user {index}") == ACTIVE
    return f"user {MOVES}"


async def test_token_move_refused_still_takes_the_token_from_its_holder(server: Server) -> None:
    holder = await move_often(server)
    await send(server, holder)
    assert (await refused(server, "stranger")).told == LIMITED
    assert await state(server, holder) == MOVED, "what is for the holder would be shown to the stranger"
    assert await waiting(server, holder) == [("CANCELLED", "DEVICE_GONE")]
    assert await devices_of(server, "stranger") == []
    trail = await audited(server)
    assert [row[3] for row in trail] == [False] * MOVES + [True]
    assert trail[-1][:2] == (holder, "stranger")
    await send(server, holder)
    assert ("SUPPRESSED", "NO_TOKEN") in await waiting(server, holder)


async def test_token_move_after_a_refusal_returns_it_to_its_device_alone(server: Server) -> None:
    holder = await move_often(server)
    await refused(server, "stranger")
    for other in ("stranger", "user 0", "one more"):
        assert (await refused(server, other)).told == LIMITED, "else taking it away would be the way round the limit"
    assert (await refused(server, holder, device="tablet")).told == LIMITED
    assert len(await audited(server)) == MOVES + 1, "nothing was taken away by those"
    assert await register(server, holder) == ACTIVE
    assert await register(server, holder) == ACTIVE
    assert len(await audited(server)) == MOVES + 1, "coming back is no move"


async def test_token_move_refusals_are_rate_limited(server: Server) -> None:
    holder = await move_often(server)
    for _ in range(RELEASES):
        assert (await refused(server, "stranger")).told == LIMITED
        assert await register(server, holder) == ACTIVE
    await send(server, holder)
    before = await server.rows()
    assert (await refused(server, "stranger")).told == LIMITED
    assert await server.rows() == before, "who knows a token cannot silence its owner for ever"
    assert await waiting(server, holder) == [("PENDING", "UNSPECIFIED")]
    assert len(await audited(server)) == MOVES + RELEASES


async def test_token_move_concurrent_refusals_take_the_token_once(server: Server) -> None:
    holder = await move_often(server)
    refusals = await asyncio.gather(*(refused(server, f"stranger {index}") for index in range(8)))
    assert {refusal.told for refusal in refusals} == {LIMITED}
    assert [row[3] for row in await audited(server)].count(True) == 1
    outcomes = await asyncio.gather(*(register(server, holder) for _ in range(4)))
    assert outcomes == [ACTIVE] * 4
    assert [await state(server, f"user {index}") for index in range(MOVES)] == [MOVED] * MOVES


async def test_token_move_beyond_the_device_limit_takes_the_token_from_its_holder(server: Server) -> None:
    for index in range(DEVICES_PER_USER):
        await server.register("crowded", f"d{index}")
    assert await register(server, "holder") == ACTIVE
    await send(server, "holder")
    assert (await refused(server, "crowded")).told == LIMITED
    assert (await state(server, "holder"), await waiting(server, "holder")) == (MOVED, [("CANCELLED", "DEVICE_GONE")])
    assert "phone" not in await devices_of(server, "crowded")
    assert [row[3] for row in await audited(server)] == [True]
    assert await register(server, "crowded", device="d0") == ACTIVE, "a device that it has gets the token"


async def test_token_given_up_by_its_device_moves_nowhere(server: Server) -> None:
    holder = await move_often(server)
    await refused(server, "stranger")
    assert await register(server, holder) == ACTIVE
    await server.user(holder)(pb.UnregisterDeviceRequest(device_id="phone"))
    assert await register(server, "stranger") == ACTIVE, "signing out and in is no move"
    assert await register(server, "stranger") == ACTIVE
    assert len(await audited(server)) == MOVES + 1


async def test_empty_token_means_no_push(server: Server) -> None:
    assert await register(server, "alice") == ACTIVE
    await send(server, "alice")
    for _ in range(2):
        assert await register(server, "alice", token="") == NONE
    assert await waiting(server, "alice") == [("CANCELLED", "DEVICE_GONE")]
    await send(server, "alice")
    assert ("SUPPRESSED", "NO_TOKEN") in await waiting(server, "alice")
    assert await register(server, "bob") == ACTIVE
    assert await audited(server) == [], "it was given up, not taken away"
    assert await register(server, "alice", token="another") == ACTIVE
    assert (await state(server, "alice"), await state(server, "bob")) == (ACTIVE, ACTIVE)


async def test_empty_token_spares_the_other_devices_of_the_user(server: Server) -> None:
    await register(server, "alice", "t1", "phone")
    await register(server, "alice", "t2", "tablet")
    await send(server, "alice")
    await register(server, "alice", "", "phone")
    assert sorted(await waiting(server, "alice")) == [("CANCELLED", "DEVICE_GONE"), ("PENDING", "UNSPECIFIED")]
    assert await state(server, "alice", "tablet") == ACTIVE
