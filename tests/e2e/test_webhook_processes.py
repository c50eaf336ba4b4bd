"""Webhooks through real processes: one event over two of them, a stop while one is taken in, and `events try`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from syncbeat_devtools.demo.processes import Identity, Process, start_process
from syncbeat_server.defaults import SignatureScheme
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.webhooks import made_secret, sign

pytestmark = pytest.mark.process

RECIPE = Path(__file__).resolve().parents[2] / "deploy" / "webhooks" / "stripe.toml"
SECRET = made_secret(SignatureScheme.STRIPE)
PAID = {
    "id": "evt_1",
    "type": "invoice.paid",
    "created": 1_767_225_600,
    "data": {"object": {"subscription": "sub_1", "subscription_details": {"metadata": {"user_id": "ann"}}}},
}
BODY = json.dumps(PAID).encode()


@pytest.fixture
def settings(database_urls: DatabaseUrls, redis_url: str) -> dict[str, str]:
    port = free_port()
    return {
        **Identity.new().settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_EVENTS_LISTEN": f"127.0.0.1:{port}",
        "SYNCBEAT_ROLE": "rpc",
        "SYNCBEAT_SHARE_PORT": "true",
        "SYNCBEAT_LOG_FORMAT": "json",
        "SYNCBEAT_APPS_FILE": str(RECIPE),
        "STRIPE_WEBHOOK_SECRET": SECRET,
    }


@pytest.fixture
async def processes(settings: dict[str, str], tmp_path: Path) -> AsyncIterator[list[Process]]:
    """Two processes that share the door's port."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(2):
            process = await start_process(["serve"], settings, tmp_path / f"{number}.log")
            stack.push_async_callback(process.stop)
            started.append(process)
        yield started


async def send(settings: dict[str, str], body: bytes = BODY) -> str:
    """Send a webhook over a connection of its own; the state that is answered."""
    url = f"http://{settings['SYNCBEAT_EVENTS_LISTEN']}/v1/webhooks/shop/stripe"
    headers = sign(SignatureScheme.STRIPE, SECRET, body, datetime.now(UTC))
    async with aiohttp.ClientSession() as http, http.post(url, data=body, headers=headers) as answer:
        return str(json.loads(await answer.text()).get("state"))


async def tiers(urls: DatabaseUrls) -> list[str]:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return [row[0] for row in await conn.fetch("SELECT user_id || ' ' || tier FROM user_tiers")]
    finally:
        await conn.close()


@pytest.mark.usefixtures("processes")
async def test_one_event_over_two_processes_has_one_effect(
    settings: dict[str, str], database_urls: DatabaseUrls
) -> None:
    states = await asyncio.gather(*(send(settings) for _ in range(40)))
    assert sorted(states) == ["ACCEPTED", *["DUPLICATE"] * 39]
    assert await tiers(database_urls) == ["ann pro"]


async def test_stop_answers_what_is_taken_in_and_closes_the_door(
    settings: dict[str, str], database_urls: DatabaseUrls, processes: list[Process]
) -> None:
    conn = await asyncpg.connect(database_urls.admin_url)
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE events IN EXCLUSIVE MODE")
            sending = [asyncio.create_task(send(settings)) for _ in range(8)]
            await _wait_for_lock(conn)
            stopping = [asyncio.create_task(process.stop()) for process in processes]
            await wait_until(lambda: is_closed(settings))
        assert sorted(await asyncio.gather(*sending)) == ["ACCEPTED", *["DUPLICATE"] * 7]
        await asyncio.gather(*stopping)
    finally:
        await conn.close()
    assert await tiers(database_urls) == ["ann pro"]


async def is_closed(settings: dict[str, str]) -> bool:
    """Tell if nobody listens at the door."""
    host, _, port = settings["SYNCBEAT_EVENTS_LISTEN"].partition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def _wait_for_lock(conn: asyncpg.Connection) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(20):
        while not await conn.fetchval(query):
            pass


async def run(settings: dict[str, str], *arguments: str) -> tuple[int | None, str, str]:
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "syncbeat_server.cli", *arguments),
        env={**{name: text for name, text in os.environ.items() if not name.startswith("SYNCBEAT_")}, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await program.communicate()
    return program.returncode, out.decode(), err.decode()


async def test_events_try_prints_what_would_come_and_writes_nothing(
    settings: dict[str, str], database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    file = tmp_path / "paid.json"
    file.write_bytes(BODY)
    without_secret = {name: text for name, text in settings.items() if name != "STRIPE_WEBHOOK_SECRET"}
    status, out, err = await run(without_secret, "events", "try", "stripe", str(file))
    assert status == 0, err
    event = json.loads(out)
    assert event == {
        "app_id": "shop",
        "source": "stripe",
        "event_id": "evt_1",
        "type": "invoice.paid",
        "subject": "sub_1",
        "occurred_time": "2026-01-01T00:00:00Z",
        "effects": {"tiers": [{"user_id": "ann", "tier": "pro"}]},
        "methods": ["SetUserTier"],
    }
    assert await tiers(database_urls) == []
    file.write_bytes(BODY.replace(b"invoice.paid", b"charge.refunded"))
    status, out, err = await run(without_secret, "events", "try", "stripe", str(file))
    assert (status, out) == (0, "")
    assert "nothing" in err
    file.write_bytes(BODY.replace(b"1767225600", b'"soon"'))
    status, _, err = await run(without_secret, "events", "try", "stripe", str(file))
    assert (status, err) == (1, "syncbeat-server: occurred: no number\n")
    status, _, err = await run(without_secret, "events", "try", "paypal", str(file))
    assert status == 1
    assert "shop stripe" in err


async def test_check_config_names_the_sample_that_does_not_fit(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "apps.toml"
    file.write_text(RECIPE.read_text().replace('allow = ["SetUserTier"]', 'allow = ["DeleteUser"]'))
    status, _, err = await run({**settings, "SYNCBEAT_APPS_FILE": str(file)}, "check-config")
    assert (status, "sample 1: these effects want SetUserTier" in err) == (1, True)
