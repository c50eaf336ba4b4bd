"""Tests that a changed apps file whose sources of webhooks cannot be used is adopted by no process that serves RPCs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from syncbeat.v1 import auth_service_pb2
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.file_damage import put
from tests.support.ports import free_port
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import Server, running_server

pytestmark = pytest.mark.rpc

SECRET = "a-secret-of-32-bytes-or-even-more"
KEY = KeyRow(Issuer("shop", "https://shop.example", uuid_subjects=False), "k", "HS256", SECRET)
SHOP = f"""
[apps.shop]
jwt_issuer = "https://shop.example"
jwt_subjects = "any"
jwt_secrets = {{ k = "{SECRET}" }}

[apps.shop.sources.clerk]
scheme = "svix"
secrets = ["whsec_YS1zZWNyZXQtb2YtMjQtYnl0ZXMtb3ItbW9yZQ=="]
allow = ["EnableUser"]
occurred = "body.timestamp"
occurred_as = "unix-milliseconds"
samples = ['''{{"type": "user.created", "timestamp": 1767225600000, "data": {{"id": "user_1"}}}}''']

[apps.shop.sources.clerk.effects]
"user.created" = "{{users: [{{user_id: body.data.id, action: 'USER_ACTION_ENSURE'}}]}}"
"""
FAULTS = {
    "events that outlive their record": SHOP.replace("occurred_as", "max_age_s = 31536000\noccurred_as"),
    "an expression": SHOP.replace('"body.timestamp"', '"body."'),
    "a sample that does not fit": SHOP.replace("user_id: body.data.id", "user_id: body.nobody"),
}


async def is_served(server: Server) -> bool:
    """Tell whether the app of the changed file is there."""
    try:
        await server.user("ann", key=KEY)(auth_service_pb2.ListSessionsRequest())
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


@pytest.mark.parametrize("has_door", [True, False], ids=["door", "no door"])
@pytest.mark.parametrize("text", FAULTS.values(), ids=FAULTS)
async def test_reload_refuses_sources_that_a_start_refuses(
    database_urls: DatabaseUrls,
    redis_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str,
    has_door: bool,
) -> None:
    file = tmp_path / "apps.toml"
    file.write_text("[apps.default]\n")
    often = replace(PATIENT, files_every_s=0.05)
    door = {"EVENTS_LISTEN": f"127.0.0.1:{free_port()}"} if has_door else {}
    async with running_server(database_urls, redis_url, Role.RPC, often, APPS_FILE=str(file), **door) as server:
        put(file, "[apps.default]\n" + text)

        def told() -> list[str]:
            return [str(record.__dict__["fault"]) for record in caplog.records if record.levelno >= logging.ERROR]

        await wait_until(told)
        assert told()[0].startswith("SYNCBEAT_APPS_FILE: apps.shop.sources.clerk")
        assert not await is_served(server)
        put(file, "[apps.default]\n" + SHOP)

        async def adopted() -> bool:
            return await is_served(server)

        await wait_until(adopted)
