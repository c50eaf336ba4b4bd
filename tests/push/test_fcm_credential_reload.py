"""FCM credentials that change, break and come back under a server that delivers: nothing ends or waits for them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_devtools.fake_fcm import FakeFcm, running_fake_fcm
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.file_damage import NOT_JSON, put, remove
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import Server, running_server

pytestmark = pytest.mark.rpc

KEEPS, AGAIN = "an app keeps its provider", "an app's provider can be made again"


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm() as running:
        yield running


@pytest.fixture
def account(fake: FakeFcm, tmp_path: Path) -> Path:
    path = tmp_path / "account.json"
    fake.write_service_account(path)
    return path


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str, fake: FakeFcm, account: Path) -> AsyncIterator[Server]:
    often = replace(PATIENT, files_every_s=0.02)
    apps = account.with_name("apps.toml")
    apps.write_text("[apps.default]\n")
    variables = {"FCM_CREDENTIALS": str(account), "FCM_BASE_URL": fake.base_url, "APPS_FILE": str(apps)}
    async with running_server(database_urls, redis_url, Role.ALL, often, **variables) as running:
        await running.register("ann", "phone", "anns-token")
        yield running


async def deliver(server: Server, fake: FakeFcm) -> None:
    """Send a notification and return when FCM has it."""
    before = fake.stats().accepted
    await server.backend(
        push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["ann"]), notification=core_pb2.Notification(title="t")
        )
    )
    await wait_until(lambda: fake.stats().accepted > before)


def told(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.message == message]


async def test_credentials_unreadable_keep_the_provider_and_are_logged_once(
    server: Server, fake: FakeFcm, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for shape, damage in NOT_JSON.items():
        caplog.clear()
        remove(account)
        damage(account)
        await wait_until(lambda: told(caplog, KEEPS), what=shape)
        await deliver(server, fake)
        assert not server.task.done(), shape
        causes = [record.__dict__["fault"] for record in told(caplog, KEEPS)]
        assert len(causes) == len(set(causes)) <= 2, shape  # that it is gone for a moment may be seen, too
        remove(account)
        fake.write_service_account(account)
        await wait_until(lambda: told(caplog, AGAIN), what=shape)
    await deliver(server, fake)
    assert "PRIVATE" not in caplog.text


def swap(account: Path, number: int) -> None:
    """Publish the account with other blanks as Kubernetes does a secret: `..data` is renamed over."""
    content = account.read_bytes()
    folder = account.with_name(f"..{number}")
    folder.mkdir()
    (folder / "account.json").write_bytes(content + b" ")
    account.with_name("..tmp").symlink_to(folder.name)
    account.with_name("..tmp").rename(account.with_name("..data"))
    if not account.is_symlink():
        account.with_name("..link").symlink_to("..data/account.json")
        account.with_name("..link").rename(account)


async def test_credentials_reload_follows_a_kubernetes_secret_swap(
    server: Server, fake: FakeFcm, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        swap(account, number)
        grants = fake.stats().token_calls
        await deliver(server, fake)

        async def granted(before: int = grants) -> bool:
            # A provider made anew asks for an access token of its own.
            await deliver(server, fake)
            return fake.stats().token_calls > before

        await wait_until(granted)
    assert not told(caplog, KEEPS)


async def test_app_added_during_a_database_outage_is_delivered_later(
    server: Server, fake: FakeFcm, stores: EmbeddedStores, account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stores.kill_postgres()
    try:
        put(account.with_name("apps.toml"), '[apps.shop]\njwt_issuer = "https://shop.example"\n')
        await wait_until(lambda: told(caplog, KEEPS))
        assert not server.task.done()
    finally:
        stores.start_postgres()
    await wait_until(lambda: told(caplog, AGAIN))
    assert [record.__dict__["app_id"] for record in told(caplog, KEEPS)] == ["shop"]
    put(account.with_name("apps.toml"), "[apps.default]\n")
    await deliver(server, fake)
