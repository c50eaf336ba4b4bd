"""PostgreSQL fails over through Patroni under load: what was acknowledged is there, and writes come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_devtools.embedded.postgres import APP, OWNER
from syncbeat_server.storage.migrate import migrate
from tests.prove.clusters import TTL_S, Node, PatroniCluster, lacks_for_patroni, running_cluster
from tests.prove.tools import reason_missing, require
from tests.prove.writers import Written, differences
from tests.support.databases import run_sql
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.prove

SCOPES = 6
BEFORE, AFTER = 300, 300
HARMS: dict[str, Callable[[Node], None]] = {"killed": Node.kill, "stopped": Node.stop}
# The lease runs out, the standby notices at its next look (3 s) and is promoted (a second or two); a busy machine.
BACK_S = TTL_S + 20.0


@pytest.fixture
def cluster(request: pytest.FixtureRequest, stores: EmbeddedStores) -> Iterator[PatroniCluster]:
    """Two nodes, in a moment a leader and its synchronous standby."""
    require(request, "Patroni", reason_missing("patroni") or lacks_for_patroni())
    with running_cluster(stores) as running:
        yield running


async def _prepare(cluster: PatroniCluster) -> None:
    """Wait for both nodes, then make the logins, the database and its tables."""
    await wait_until(cluster.leader, 60.0, "a node leads")
    await wait_until(cluster.synchronous, 60.0, "the other follows synchronously")
    await run_sql(cluster.url("postgres", "postgres"), *cluster.statements())
    await migrate(cluster.url(OWNER), app_login=APP)


async def _two_servers(stage: Stage) -> None:
    await asyncio.gather(stage.start_server(), stage.start_server())


@pytest.mark.timeout(420)
@pytest.mark.parametrize("how", HARMS)
async def test_failover_through_patroni_loses_no_acknowledged_publish(
    how: str,
    cluster: PatroniCluster,
    stores: EmbeddedStores,
    tmp_path: Path,
    record: Callable[[str, dict[str, object]], None],
) -> None:
    await _prepare(cluster)
    written, over = Written(), asyncio.Event()
    async with running_stage(stores, tmp_path, database_url=cluster.url(APP)) as stage:
        await _two_servers(stage)
        clients = [stage.client(stage.identity.service_token, server) for server in stage.servers]
        load = [
            asyncio.ensure_future(written.write(clients[number % 2], f"scope-{number}", "key", over))
            for number in range(SCOPES)
        ]
        await wait_until(lambda: written.count >= BEFORE, 60.0, "publishes are acknowledged")
        killed, standby = cluster.leader(), cluster.synchronous()
        assert killed is not None
        assert standby is not None
        assert standby is not killed
        await asyncio.to_thread(HARMS[how], killed)
        moment = time.monotonic()
        acknowledged = written.count
        await wait_until(lambda: len(written.after(moment)) == SCOPES, BACK_S, "every scope takes writes again")
        await wait_until(lambda: written.count >= acknowledged + AFTER, 60.0, "publishes are acknowledged again")
        # The former leader rejoins what went on without it.
        killed.resume()
        await wait_until(lambda: cluster.synchronous() is killed, 90.0, "the former leader follows")
        over.set()
        await asyncio.gather(*load)
        for client in clients:
            await client.close()
    found = await differences(cluster.url("postgres"), written)
    record(
        f"patroni-{how}",
        {
            "command": "make prove ARGS='-k patroni'",
            "ttl_s": TTL_S,
            "acknowledged_before": acknowledged,
            "acknowledged": written.count,
            **found,
            "writes_back_after_s": round(written.longest_silence(), 1),
            "failed_calls_repeated": dict(written.failures),
        },
    )
    assert found == {"lost": 0, "doubled": 0}
    assert await wait_until(cluster.leader) is standby
    assert set(written.failures) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
