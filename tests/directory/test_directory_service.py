"""DirectoryService over the wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from syncbeat.v1 import directory_service_pb2 as pb
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

DENIED, NOT_THERE = ("PERMISSION_DENIED", "ACCESS_DENIED"), ("NOT_FOUND", "NOT_FOUND")
LIMITED = ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
NONE, ACTIVE, MOVED = pb.TOKEN_STATE_NONE, pb.TOKEN_STATE_ACTIVE, pb.TOKEN_STATE_MOVED


def register(**fields: Any) -> pb.RegisterDeviceRequest:
    return pb.RegisterDeviceRequest(**{"device_id": "phone", "platform": pb.PLATFORM_IOS, **fields})


async def state(server: Server, user: str, device: str = "phone") -> int:
    answer = await server.backend(pb.GetDeviceRequest(user_id=user, device_id=device))
    return int(answer.device.token_state)


async def test_device_is_registered_read_and_deleted(server: Server) -> None:
    alice = server.user("alice")
    full = register(registration_token="secret-token", time_zone="Europe/Berlin", locale="de-DE")
    began = int(time.time())
    device = (await alice(full)).device
    assert (device.user_id, device.device_id, device.platform) == ("alice", "phone", pb.PLATFORM_IOS)
    assert (device.token_state, device.time_zone, device.locale) == (ACTIVE, "Europe/Berlin", "de-DE")
    assert began <= device.register_time.seconds <= time.time()
    assert b"secret-token" not in device.SerializeToString()
    read = pb.GetDeviceRequest(device_id="phone")
    assert (await alice(read)).device == device
    again = (await alice(full)).device
    assert again.register_time == device.register_time
    changed = (await alice(register(platform=pb.PLATFORM_ANDROID, registration_token="secret-token"))).device
    assert (changed.platform, changed.token_state, changed.locale) == (pb.PLATFORM_ANDROID, ACTIVE, "")
    await alice(pb.UnregisterDeviceRequest(device_id="phone"))
    assert (await alice.refusal(read)).told == DENIED


# As FCM gives them: an instance id and 140 characters, older ones without it, and as long as they may ever be.
TOKENS = ("fMo-1_" * 3 + "dQ8x:APA91b" + "Hx-_9" * 28, "APA91b" + "Zy_-0" * 30, "x" * 4096, "!~")


async def test_registration_token_is_visible_ascii(server: Server) -> None:
    alice = server.user("alice")
    for token in TOKENS:
        assert (await alice(register(registration_token=token))).device.token_state == ACTIVE
    before = await server.rows()
    for token in (f"{TOKENS[0]}\n", f" {TOKENS[0]}", TOKENS[0].replace(":", " "), TOKENS[0] + "ü", "x" * 4097, "\x7f"):
        refusal = await alice.refusal(register(registration_token=token))
        assert (refusal.told, refusal.fields) == (("INVALID_ARGUMENT", "INVALID_FIELD"), ("registration_token",))
        assert token not in refusal.message
    assert await server.rows() == before


@pytest.mark.parametrize("zone", ["GMT+05:30", "GMT+0530", "+05:30", "UTC-3"])
async def test_time_zone_may_be_an_offset(server: Server, zone: str) -> None:
    alice = server.user("alice")
    assert (await alice(register(time_zone=zone))).device.time_zone == zone
    quiet = pb.QuietHours(start_minute=0, end_minute=60, time_zone=zone)
    kept = (await alice(pb.SetPreferencesRequest(quiet_hours=quiet))).preferences
    assert kept.quiet_hours == quiet


@pytest.mark.parametrize(
    "zone", ["Mars/Base", "GMT+99:00", "localtime", "India Standard Time", "../../etc/passwd", "é"]
)
async def test_time_zone_invalid_is_refused_alone(server: Server, zone: str) -> None:
    alice = server.user("alice")
    await alice(register(registration_token="old", time_zone="Europe/Berlin"))
    device = (await alice(register(registration_token="new", time_zone=zone, locale="hi-IN"))).device
    assert (device.token_state, device.locale, device.time_zone) == (ACTIVE, "hi-IN", ""), "not known"
    assert (await alice(pb.GetDeviceRequest(device_id="phone"))).device == device
    quiet = pb.QuietHours(start_minute=0, end_minute=60, time_zone=zone)
    refusal = await alice.refusal(pb.SetPreferencesRequest(quiet_hours=quiet))
    assert refusal.fields == ("quiet_hours.time_zone",), "what was asked for is nothing without its zone"


async def test_acting_user_is_named_by_a_service(server: Server) -> None:
    for request in (pb.GetDeviceRequest, pb.UnregisterDeviceRequest):
        assert (await server.backend.refusal(request(user_id="alice", device_id="phone"))).told == NOT_THERE
        unnamed = await server.backend.refusal(request(device_id="phone"))
        assert unnamed.fields == ("user_id",)
    await server.backend(register(user_id="alice"))
    assert (await server.user("alice")(pb.GetDeviceRequest(device_id="phone"))).device.token_state == NONE
    await server.backend(pb.UnregisterDeviceRequest(user_id="alice", device_id="phone"))
    assert not (await server.user("alice")(pb.ListDevicesRequest())).devices


async def test_registration_token_belongs_to_one_device(server: Server) -> None:
    await server.user("alice")(register(registration_token="t"))
    await server.user("bob")(register(registration_token="t"))
    assert (await state(server, "alice"), await state(server, "bob")) == (MOVED, ACTIVE)
    await server.user("alice")(register(registration_token="t2"))
    assert (await state(server, "alice"), await state(server, "bob")) == (ACTIVE, ACTIVE)
    await server.user("alice")(register(device_id="tablet", registration_token="t2"))
    assert (await state(server, "alice"), await state(server, "alice", "tablet")) == (MOVED, ACTIVE)
    assert len((await server.rows())["token_moves"]) == 2


async def test_device_limit_per_user(server: Server) -> None:
    alice = server.user("alice")
    for index in range(100):
        await alice(register(device_id=f"d{index}"))
    before = await server.rows()
    assert (await alice.refusal(register(device_id="one more", registration_token="t"))).told == LIMITED
    assert await server.rows() == before
    await alice(register(device_id="d0", registration_token="t"))
    await server.user("bob")(register())


async def test_device_registered_concurrently_is_one_device(server: Server) -> None:
    alice = server.user("alice")
    await asyncio.gather(*(alice(register(registration_token=f"t{index}")) for index in range(10)))
    await asyncio.gather(*(server.user(f"u{index}")(register(registration_token="one")) for index in range(8)))
    assert len((await alice(pb.ListDevicesRequest())).devices) == 1
    states = [await state(server, f"u{index}") for index in range(8)]
    assert sorted(states) == [ACTIVE] + [MOVED] * 7


async def test_scope_members_are_added_and_removed(server: Server) -> None:
    members = [
        pb.ScopeMember(user_id="bob", role=pb.ROLE_READER),
        pb.ScopeMember(user_id="alice", role=pb.ROLE_READER),
        pb.ScopeMember(user_id="bob", role=pb.ROLE_WRITER),
    ]
    add = pb.AddScopeMembersRequest(scope="s", members=members)
    for _ in range(2):
        assert (await server.backend(add)).member_count == 2
    listed = (await server.backend(pb.ListScopeMembersRequest(scope="s"))).members
    assert [(member.user_id, member.role) for member in listed] == [("alice", pb.ROLE_READER), ("bob", pb.ROLE_WRITER)]
    scopes = (await server.user("bob")(pb.ListScopesRequest())).scopes
    assert [(part.scope, part.role) for part in scopes] == [("s", pb.ROLE_WRITER)]
    assert scopes[0].add_time == listed[1].add_time
    remove = pb.RemoveScopeMembersRequest(scope="s", user_ids=["bob", "nobody"])
    assert [(await server.backend(remove)).removed_count for _ in range(2)] == [1, 0]
    assert not (await server.backend(pb.ListScopesRequest(user_id="bob"))).scopes
    for request in (pb.ListScopeMembersRequest(scope="t"), pb.RemoveScopeMembersRequest(scope="t", user_ids=["bob"])):
        assert (await server.backend.refusal(request)).told == NOT_THERE


async def test_scope_member_limit(server: Server) -> None:
    for chunk in range(10):
        await server.add("crowd", *(f"u{chunk}-{index}" for index in range(1000)))
    before = (await server.rows())["scope_members"]
    one_more = [pb.ScopeMember(user_id="one more", role=pb.ROLE_READER)]
    refusal = await server.backend.refusal(pb.AddScopeMembersRequest(scope="crowd", members=one_more))
    assert refusal.told == LIMITED
    assert refusal.pushback == "-1"  # to try again at once is of no use
    assert (await server.rows())["scope_members"] == before
    again = [pb.ScopeMember(user_id="u0-0", role=pb.ROLE_WRITER)]
    assert (await server.backend(pb.AddScopeMembersRequest(scope="crowd", members=again))).member_count == 10_000


async def test_pagination_of_devices_and_members(server: Server) -> None:
    names = [f"n{index}" for index in range(5)]
    for name in names:
        await server.add(name, "u", *names)
        await server.register("u", name)
    lists: list[tuple[Any, Callable[[Any], list[str]], list[str]]] = [
        (pb.ListDevicesRequest(user_id="u"), lambda page: [d.device_id for d in page.devices], names),
        (pb.ListScopesRequest(user_id="u"), lambda page: [s.scope for s in page.scopes], names),
        (pb.ListScopeMembersRequest(scope="n0"), lambda page: [m.user_id for m in page.members], [*names, "u"]),
    ]
    for request, ids, expected in lists:
        for size in (1, 2, len(expected), 0, 1_001, 2**31 - 1):  # more than the most is taken as the most
            found, asked = [], type(request).FromString(request.SerializeToString())
            asked.page_size = size
            while True:
                page = await server.backend(asked)
                assert len(ids(page)) <= min(size or 50, 1_000)
                found += ids(page)
                if not page.next_page_token:
                    break
                asked.page_token = page.next_page_token
            assert found == expected
