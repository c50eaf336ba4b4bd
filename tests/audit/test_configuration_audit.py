"""Changes of the apps file in the audit log: what changed by name, and no secret of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.app.tenants.configuration_audit import ConfigurationAudit, settings_digest
from syncbeat_server.audit.model import AuditEntry, AuditFilter
from syncbeat_server.audit.service import AuditService
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.storage.postgres.database import Database
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.file_damage import put

pytestmark = pytest.mark.store

SECRET = "0123456789abcdef0123456789abcdef"
SHOP = f'[apps.shop]\njwt_issuer = "https://shop.example"\njwt_secrets = "k1={SECRET}"\n'


async def entries(database: Database, app_id: str) -> list[AuditEntry]:
    found = await AuditService(database, frozenset).all_entries(app_id, AuditFilter(), None, 100)
    return found[::-1]


async def test_configuration_audit_names_what_changed_and_no_secret(database: Database, tmp_path: Path) -> None:
    file, clock = tmp_path / "apps.toml", FakeClock()
    file.write_text(SHOP)
    apps = AppConfiguration(load_settings({"SYNCBEAT_APPS_FILE": str(file)}, env_file=None), clock)
    audit = ConfigurationAudit(database, apps)
    await audit.record()
    running = [asyncio.create_task(apps.run()), asyncio.create_task(audit.run())]

    async def told_after(text: str) -> AuditEntry:
        before = len(await entries(database, "shop"))
        put(file, text)

        async def written() -> bool:
            await clock.advance(2.0)
            return len(await entries(database, "shop")) > before

        await wait_until(written)
        return (await entries(database, "shop"))[-1]

    try:
        key = await told_after(SHOP.replace("k1=", "k2="))
        assert (key.action, json.loads(key.details)["changed"]) == ("APP_CHANGED", "jwt_secrets")
        both = await told_after(SHOP.replace("https://shop", "https://shop2") + "poll_floor_s = 7\n")
        assert set(json.loads(both.details)["changed"].split()) == {"jwt_issuer", "jwt_secrets", "poll_floor_s"}
        assert (await told_after('[apps.other]\njwt_issuer = "https://other.example"\n')).action == "APP_REMOVED"
        for entry in await entries(database, "shop"):
            assert SECRET not in entry.details
            assert entry.actor == "process"
    finally:
        for task in running:
            task.cancel()


def test_settings_digest_is_the_same_with_a_setting_at_its_default() -> None:
    class LaterSettings(AppSettings):
        """The settings of an app in a release that has one more."""

        added: int = 7

    given = {"jwt_issuer": "https://shop.example", "poll_floor_s": 9.0}
    known = settings_digest(b"s", AppSettings.model_validate(given))
    assert settings_digest(b"s", LaterSettings.model_validate(given)) == known
    assert settings_digest(b"s", LaterSettings.model_validate({**given, "added": 7})) == known
    assert settings_digest(b"s", LaterSettings.model_validate({**given, "added": 8})) != known


def test_settings_digest_differs_with_each_secret(tmp_path: Path) -> None:
    file = tmp_path / "apps.toml"

    def digest(text: str, secret: bytes = b"s") -> str:
        file.write_text(text)
        return settings_digest(
            secret, load_settings({"SYNCBEAT_APPS_FILE": str(file)}, env_file=None).all_apps()["shop"]
        )

    assert digest(SHOP) == digest(SHOP)
    assert len({digest(SHOP), digest(SHOP.replace("cdef", "cdee")), digest(SHOP, b"t")}) == 3
