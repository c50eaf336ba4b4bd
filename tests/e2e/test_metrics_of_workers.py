"""The processes of `SYNCBEAT_WORKERS` have one /metrics: each answers for all, those included that crashed."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import aiohttp
import grpc
import psutil
import pytest

from syncbeat.v1 import directory_service_pb2, directory_service_pb2_grpc
from syncbeat_devtools.demo.processes import Identity, start_process
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.process

METHOD = 'grpc_method="RegisterDevice",grpc_service="syncbeat.v1.DirectoryService",grpc_type="unary"'
REGISTERED = f"grpc_server_started_total{{{METHOD}}}"
OPEN_METRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


async def scraped(port: int) -> dict[str, float]:
    """The series now, of whichever process takes the connection."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/metrics", headers=OPEN_METRICS) as got,
    ):
        assert got.status == 200
        assert got.headers["content-type"].startswith("application/openmetrics-text")
        lines = [line.partition(" # ")[0] for line in (await got.text()).splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def call(address: str, token: str, count: int) -> None:
    request = directory_service_pb2.RegisterDeviceRequest(
        user_id="ann", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
    )
    for _ in range(count):
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection each, so that all processes get some
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = directory_service_pb2_grpc.DirectoryServiceStub(channel)
            await stub.RegisterDevice(request, metadata=(("authorization", f"Bearer {token}"),))


def settings_of(identity: Identity, stores: tuple[str, str], port: int, ops: int) -> dict[str, str]:
    return {
        **identity.settings(),
        "SYNCBEAT_DATABASE_URL": stores[0],
        "SYNCBEAT_REDIS_URL": stores[1],
        "SYNCBEAT_LISTEN": f"127.0.0.1:{port}",
        "SYNCBEAT_OPS_LISTEN": f"127.0.0.1:{ops}",
        "SYNCBEAT_ROLE": "rpc",
        "SYNCBEAT_WORKERS": "2",
    }


async def test_each_worker_answers_for_all(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    identity, port, ops = Identity.new(), free_port(), free_port()
    stores = database_urls.app_url, redis_url
    process = await start_process(["serve"], settings_of(identity, stores, port, ops), tmp_path / "log", ready_s=90)
    try:

        async def both_serve() -> bool:
            with suppress(aiohttp.ClientError):
                return (await scraped(ops))['syncbeat_metrics_processes{state="answered"}'] == 2
            return False

        await wait_until(both_serve)
        await call(f"127.0.0.1:{port}", identity.service_token, 20)
        counts = {(await scraped(ops))[REGISTERED] for _ in range(12)}
        assert counts == {20.0}
        worker, *_ = [
            child for child in psutil.Process(process.pid).children(recursive=True) if "serve" in child.cmdline()
        ]
        worker.kill()

        async def replaced() -> bool:
            with suppress(aiohttp.ClientError, ConnectionError, asyncio.TimeoutError):
                found = await scraped(ops)
                states = [found[f'syncbeat_metrics_processes{{state="{one}"}}'] for one in ("answered", "ended")]
                return states == [2, 1]
            return False

        await wait_until(replaced, timeout_s=60)
        assert (await scraped(ops))[REGISTERED] == 20.0
    finally:
        await process.stop()


async def test_workers_meet_in_the_folder_that_the_env_file_names(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("SYNCBEAT_METRICS_DIR=met\n")  # below the folder that the processes run in
    (tmp_path / "met").mkdir(mode=0o700)
    stores = database_urls.app_url, redis_url
    settings = settings_of(Identity.new(), stores, free_port(), free_port())
    process = await start_process(["serve"], settings, tmp_path / "log", ready_s=90)
    try:

        async def both_meet() -> bool:
            return sum(name.endswith(".sock") for name in os.listdir(tmp_path / "met")) == 2

        await wait_until(both_meet)
    finally:
        await process.stop()
