"""Files that are gone while real processes run: each goes on by what it read before."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2
from syncbeat_devtools.demo.processes import Identity, Process, start_process
from syncbeat_devtools.fake_fcm import FakeFcm, running_fake_fcm
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.process

KEEPS = "an app keeps its provider"


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm() as running:
        yield running


async def said(process: Process, event: str, times: int = 1) -> None:
    """Return when it has logged that so many times."""
    await wait_until(lambda: len(lines(process, event)) == times, what=event)


def lines(process: Process, event: str) -> list[dict[str, object]]:
    """Return what a process logged of an event."""
    logged = [json.loads(line) for line in process.log_text().splitlines() if line.startswith("{")]
    return [line for line in logged if line["event"] == event]


async def test_missing_credentials_file_is_survived_and_logged_once(
    database_urls: DatabaseUrls, redis_url: str, fake: FakeFcm, tmp_path: Path
) -> None:
    account, apps, identity = tmp_path / "account.json", tmp_path / "apps.toml", Identity.new()
    fake.write_service_account(account)
    apps.write_text(f'[apps.shop]\njwt_issuer = "https://shop.example"\nfcm_credentials = "{account}"\n')
    settings = {
        **identity.settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_LOG_FORMAT": "json",
        "SYNCBEAT_FCM_CREDENTIALS": str(account),
        "SYNCBEAT_FCM_BASE_URL": fake.base_url,
        "SYNCBEAT_APPS_FILE": str(apps),
    }
    server = await start_process(["serve"], settings, tmp_path / "server.log")
    worker = await start_process(["worker"], settings, tmp_path / "worker.log")
    async with SyncbeatClient(server.address, token=identity.service_token, tls=False) as backend:
        phone = directory_service_pb2.RegisterDeviceRequest(
            user_id="ann",
            device_id="phone",
            platform=directory_service_pb2.PLATFORM_ANDROID,
            registration_token="anns-token",
        )
        await backend.directory.RegisterDevice(phone)
        account.unlink()
        for process in (server, worker):
            await said(process, KEEPS, 2)  # of both apps
        request = push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["ann"]), notification=core_pb2.Notification(title="t")
        )
        await backend.push.SendNotification(request)
        await wait_until(lambda: fake.stats().accepted == 1)
        apps.unlink()
        for process in (server, worker):
            await said(process, "the apps file cannot be used now; what was read before stays")
        fake.write_service_account(account)
        for process in (server, worker):
            await said(process, "an app's provider can be made again", 2)
            assert len(lines(process, KEEPS)) == 2
        await backend.push.SendNotification(request)
        await wait_until(lambda: fake.stats().accepted == 2)
    for process in (server, worker):
        assert await process.stop() == 0
        assert "Traceback" not in process.log_text()


async def test_missing_secret_of_a_restarted_copy_does_not_end_the_others(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, free_port: int
) -> None:
    secret, identity = tmp_path / "jwt", Identity.new().settings()
    secret.write_text(identity.pop("SYNCBEAT_JWT_SECRETS"))
    urls = tmp_path / "url"
    urls.write_text(database_urls.app_url)
    settings = {
        **identity,
        "SYNCBEAT_JWT_SECRETS_FILE": str(secret),
        "SYNCBEAT_DATABASE_URL_FILE": str(urls),
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": f"127.0.0.1:{free_port}",
        "SYNCBEAT_WORKERS": "2",
        "SYNCBEAT_LOG_FORMAT": "json",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")

    def copies() -> list[psutil.Process]:
        return psutil.Process(process.pid).children()

    await wait_until(lambda: len(lines(process, "serving")) == 2)
    first, second = copies()
    text = secret.read_text()
    secret.unlink()
    first.kill()
    again = "a serving process ended and is started again"
    await wait_until(lambda: {line["status"] for line in lines(process, again)} == {-9, 1}, 30)
    assert second.is_running()
    secret.write_text(text)
    await wait_until(lambda: len(lines(process, "serving")) == 3, 30)
    assert second in copies()
    assert await process.stop() == 0
