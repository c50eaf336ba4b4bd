"""Tests that the copies of a server, which share a port, follow the files of secrets as a single process does."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from syncbeat_devtools.demo.processes import Identity, start_process
from tests.support.databases import TEST_APP_LOGIN, DatabaseUrls, logins_of, run_sql
from tests.support.fake_clock import wait_until
from tests.support.file_damage import put

pytestmark = pytest.mark.process

NEXT_LOGIN = "syncbeat_of_copies"


async def test_login_of_postgres_rotates_in_all_copies_and_in_restarted_ones(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, free_port: int
) -> None:
    urls, file = database_urls, tmp_path / "database"
    put(file, urls.app_url)
    await run_sql(
        urls.admin_url,
        f"CREATE ROLE {NEXT_LOGIN} LOGIN",
        f"GRANT syncbeat_service, syncbeat_user TO {NEXT_LOGIN}",
        f"GRANT CONNECT ON DATABASE {urls.name} TO {NEXT_LOGIN}",
    )
    settings = {
        **Identity.new().settings(),
        "SYNCBEAT_DATABASE_URL_FILE": str(file),
        "SYNCBEAT_DATABASE_CONNECTION_LIFE_S": "1",
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": f"127.0.0.1:{free_port}",
        "SYNCBEAT_WORKERS": "2",
        "SYNCBEAT_LOG_FORMAT": "json",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")

    async def all_are_of(login: str) -> bool:
        return await logins_of(urls) == [login]

    try:
        await wait_until(lambda: process.log_text().count('"serving"') == 2)
        assert await all_are_of(TEST_APP_LOGIN)
        put(file, urls.app_url.replace(TEST_APP_LOGIN, NEXT_LOGIN))
        await wait_until(lambda: process.log_text().count("secrets were read anew") == 2, 30)
        await wait_until(lambda: all_are_of(NEXT_LOGIN), 30)
        await run_sql(urls.admin_url, f"REVOKE CONNECT ON DATABASE {urls.name} FROM {TEST_APP_LOGIN}")
        psutil.Process(process.pid).children()[0].kill()
        await wait_until(lambda: process.log_text().count('"serving"') == 3, 30, "the copy that was restarted logs in")
    finally:
        await process.stop()
        await run_sql(urls.admin_url, f"DROP OWNED BY {NEXT_LOGIN}", f"DROP ROLE {NEXT_LOGIN}")
