"""Tests the errors that races make PostgreSQL raise, planted under every call that writes."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from tests.support.rpc_server import METHODS, Server

pytestmark = [pytest.mark.rpc, pytest.mark.asyncio(loop_scope="module")]

PLANT = """
CREATE TABLE planted (sqlstate text);
GRANT SELECT ON planted TO PUBLIC;
CREATE FUNCTION raise_planted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE state text := (SELECT sqlstate FROM planted);
BEGIN
    IF state IS NOT NULL THEN
        RAISE EXCEPTION 'planted' USING ERRCODE = state;
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE t text;
BEGIN
    FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'planted' LOOP
        EXECUTE format('CREATE TRIGGER plant BEFORE INSERT OR UPDATE OR DELETE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION raise_planted()', t);
    END LOOP;
END $$;
"""

OVERLOADED, DOWN = ("RESOURCE_EXHAUSTED", "OVERLOADED"), ("UNAVAILABLE", "DEPENDENCY_DOWN")
IN_FLIGHT = ("ABORTED", "REQUEST_IN_FLIGHT")  # it is its twin that is waited for, where there is a request_id
DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
# What a user, and what a service is told.
TOLD = {
    "42501": (DENIED, DOWN),
    "23503": (OVERLOADED, OVERLOADED),
    "23505": (OVERLOADED, OVERLOADED),
    "40P01": (OVERLOADED, OVERLOADED),
    "40001": (OVERLOADED, OVERLOADED),
    "55P03": (OVERLOADED, OVERLOADED, IN_FLIGHT),
    "57014": (DOWN, DOWN),
    "53200": (DOWN, DOWN),
    "57P01": (DOWN, DOWN),
    **dict.fromkeys(("3D000", "3F000", "42P01", "42883", "42703", "42P10", "28000", "XX000"), (DOWN, DOWN)),
}
MINUTE = duration_pb2.Duration(seconds=60)
CHANGE = core_pb2.NewChange(scope="s", key="k", merge_patch_json="{}")


def device(user: str = "") -> Message:
    return directory_service_pb2.RegisterDeviceRequest(
        user_id=user, device_id="d", platform=directory_service_pb2.PLATFORM_WEB, registration_token="planted"
    )


OF_SERVICES: list[Message] = [
    sync_service_pb2.PublishChangesRequest(changes=[CHANGE]),
    sync_service_pb2.PublishChangesRequest(changes=[CHANGE], trigger=core_pb2.SyncTrigger(type="t")),
    sync_service_pb2.BoostScopeRequest(
        scope="s", priority=sync_service_pb2.PRIORITY_FAST, duration=duration_pb2.Duration(seconds=60)
    ),
    push_service_pb2.SendNotificationRequest(
        user_ids=core_pb2.UserIds(ids=["ann"]), notification=core_pb2.Notification(title="t")
    ),
    device("ann"),
    directory_service_pb2.UnregisterDeviceRequest(user_id="ann", device_id="phone"),
    directory_service_pb2.AddScopeMembersRequest(
        scope="s", members=[directory_service_pb2.ScopeMember(user_id="u", role=directory_service_pb2.ROLE_READER)]
    ),
    directory_service_pb2.RemoveScopeMembersRequest(scope="s", user_ids=["ann"]),
    directory_service_pb2.DisableUserRequest(user_id="ann"),
    directory_service_pb2.EnableUserRequest(user_id="ann"),
    directory_service_pb2.DeleteUserRequest(user_id="ann"),
    auth_service_pb2.CreateSessionRequest(user_id="ann"),
    auth_service_pb2.RevokeUserRequest(user_id="ann"),
    directory_service_pb2.SetPreferencesRequest(user_id="ann", max_per_day=1),
]
OF_USERS: list[Message] = [
    sync_service_pb2.PublishChangesRequest(changes=[CHANGE]),
    sync_service_pb2.PublishChangesRequest(changes=[CHANGE], trigger=core_pb2.SyncTrigger(type="t")),
    sync_service_pb2.PublishChangesRequest(changes=[CHANGE], request_id="planted"),
    device(),
    directory_service_pb2.UnregisterDeviceRequest(device_id="phone"),
    directory_service_pb2.SetPreferencesRequest(max_per_day=1),
]


def named(value: object) -> str | None:
    return value.DESCRIPTOR.name if isinstance(value, Message) else None


@pytest.fixture(scope="module")
def prepared() -> dict[str, bool]:
    return {}


async def planted(server: Server, prepared: dict[str, bool]) -> asyncpg.Connection:
    """A connection that plants, on a server with somebody to write for."""
    conn = await asyncpg.connect(server.urls.admin_url)
    if not prepared:
        prepared["done"] = True
        await server.add("s", "ann")
        await server.register("ann", "phone", "a-registration")
        await server.user("ann")(directory_service_pb2.ListDevicesRequest())
        await conn.execute(PLANT)
    return conn


@pytest.mark.parametrize("sqlstate", TOLD)
@pytest.mark.parametrize(
    ("request_", "by_user"), [*((r, False) for r in OF_SERVICES), *((r, True) for r in OF_USERS)], ids=named
)
async def test_database_error_of_a_race_maps_to_a_status(
    module_server: Server, prepared: dict[str, bool], request_: Message, by_user: bool, sqlstate: str
) -> None:
    conn = await planted(module_server, prepared)
    caller: Any = module_server.user("ann") if by_user else module_server.backend
    await conn.execute("INSERT INTO planted VALUES ($1)", sqlstate)
    try:
        refusal = await caller.raw_refusal(METHODS[request_.DESCRIPTOR.name], request_.SerializeToString())
    finally:
        await conn.execute("DELETE FROM planted")
        await conn.close()
    assert refusal.told in (TOLD[sqlstate] if by_user else TOLD[sqlstate][1:2]), refusal
