"""Bounds the log of a server whose callers do wrong, or whose issuer is away, however often they call."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from syncbeat.v1 import directory_service_pb2
from syncbeat_devtools.demo.processes import Identity, start_process
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.verify import mint
from tests.support.databases import DatabaseUrls
from tests.support.ports import free_port

pytestmark = pytest.mark.process

CALLS = 300
MOST_LINES, MOST_OCTETS = 20, 40_000
LIST_DEVICES, CHECK = "/syncbeat.v1.DirectoryService/ListDevices", "/grpc.health.v1.Health/Check"
REFRESH = "/syncbeat.v1.AuthService/RefreshSession"


async def test_log_rate_limit_under_floods_of_bad_calls(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    settings = {
        **Identity.new().settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_LOG_FORMAT": "json",
        "SYNCBEAT_ROLE": "rpc",
        "SYNCBEAT_JWKS_URL": f"http://127.0.0.1:{free_port()}/jwks.json",
        "SYNCBEAT_JWT_ISSUER": "away",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")
    codes = set()
    async with grpc.aio.insecure_channel(process.address) as channel:
        methods: Any = channel

        async def call(path: str, data: bytes, token: str = "") -> None:
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            try:
                await methods.unary_unary(path)(data, metadata=metadata, timeout=30)
            except grpc.aio.AioRpcError as error:
                codes.add((path, error.code()))

        key = ec.generate_private_key(ec.SECP256R1())
        request = directory_service_pb2.ListDevicesRequest().SerializeToString()
        for number in range(CALLS):
            row = KeyRow(Issuer("default", "away", uuid_subjects=False), f"kid{number}", "ES256", key)
            token = mint(row, f"user-{number}", datetime.now(UTC), timedelta(hours=1))
            await asyncio.gather(
                call(LIST_DEVICES, request, token),
                call(LIST_DEVICES, request, token[:-8]),
                call(LIST_DEVICES, b"\xff\xff", "x" * number),
                call(CHECK, b"\xff" * 100),
                call(REFRESH, b"\x0a\x01\xff"),
            )
    assert await process.stop() == 0
    assert (CHECK, grpc.StatusCode.INVALID_ARGUMENT) in codes
    assert (LIST_DEVICES, grpc.StatusCode.UNAVAILABLE) in codes
    text = process.log_text()
    assert len(text.splitlines()) <= MOST_LINES, text[:5_000]
    assert len(text) <= MOST_OCTETS, text[:5_000]
