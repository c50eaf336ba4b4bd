"""Tests how the fake FCM starts and ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import aiohttp
import orjson
import pytest

from syncbeat_devtools.fake_fcm import FakeFcm, FakeFcmSettings, running_fake_fcm, serve
from tests.support.fake_clock import wait_until
from tests.support.fcm_client import Reply, signed_in

pytestmark = pytest.mark.http


async def test_serve_reports_readiness_and_runs_until_cancelled() -> None:
    ready: asyncio.Future[FakeFcm] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(FakeFcmSettings(), ready.set_result))
    fake = await asyncio.wait_for(ready, 20)
    async with aiohttp.request("GET", f"{fake.base_url}/control/stats") as answer:
        assert orjson.loads(await answer.read())["requests"] == 0
    port = int(fake.base_url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        await serve(FakeFcmSettings(port=port), ready.set_result)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_shutdown_leaves_nothing_running() -> None:
    async with signed_in() as client:
        left = [asyncio.create_task(client.send(f"fault:{kind}:1")) for kind in ("hang", "slow+600000")]
        left.append(asyncio.create_task(client.control("GET", "deliveries?wait_ms=60000")))
        await wait_until(lambda: client.fake.stats().requests == 2 and client.fake.ledger._waiters)
        fake = client.fake
        await stop(fake, left)
    assert (fake.stats().accepted, fake.stats().hanging, fake.ledger._waiters) == (0, 0, [])


async def stop(fake: FakeFcm, left: list[asyncio.Task[Reply]]) -> None:
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    fake.reset()


async def test_shutdown_breaks_open_connections() -> None:
    async with running_fake_fcm() as fake:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(fake.base_url.rpartition(":")[2]))
        await wait_until(lambda: fake.stats().connections == 1)
    try:
        assert await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionResetError:
        assert fake.stats().connections == 0
    writer.transport.abort()
    await wait_until(lambda: fake.stats().connections == 0)


@pytest.mark.parametrize("tls", [False, True])
async def test_tls_alone_needs_files_and_removes_them(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with running_fake_fcm(FakeFcmSettings(tls=tls)):
        assert bool(_files(tmp_path)) == tls
    assert not _files(tmp_path)


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
