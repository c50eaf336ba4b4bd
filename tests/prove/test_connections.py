"""200 and 500 clients against pools of 1, 5 and 30, of two processes, direct and through PgBouncer.

Nobody waits for a connection for ever: on a machine too slow for so many, calls are shed and told when to come again.
Those come again, and are counted apart from errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from syncbeat_devtools.demo.processes import Process, start_process
from syncbeat_devtools.demo.stage import Stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.prove.tools import pgbouncer_program, reason_missing, require
from tests.support import client_load
from tests.support.client_load import Load
from tests.support.databases import DatabaseUrls
from tests.support.pgbouncer import pooled
from tests.support.ports import free_port

pytestmark = pytest.mark.prove

PROCESSES = 2
SECONDS = 6.0
CLIENTS, SIZES = (200, 500), (1, 5, 30)
POOLER_CONNECTIONS = 20  # its default_pool_size in tests/support/pgbouncer.py
LEAST_HIT_RATE = 0.7


@dataclass(frozen=True)
class Cell:
    """One of the runs."""

    clients: int
    size: int
    path: str


@asynccontextmanager
async def processes(stage: Stage, cell: Cell, folder: Path) -> AsyncIterator[tuple[list[Process], list[str]]]:
    """Processes of all roles, each of which also listens by a session of its own; with their operators' endpoints."""
    ops = [f"127.0.0.1:{free_port()}" for _ in range(PROCESSES)]
    settings = {**stage.settings, "SYNCBEAT_DATABASE_POOL_SIZE": str(cell.size), "SYNCBEAT_ROLE": "all"}
    logs = [folder / f"{cell.path}-{cell.clients}-{cell.size}-{number}.log" for number in range(PROCESSES)]
    started = await asyncio.gather(
        *(
            start_process(["serve"], {**settings, "SYNCBEAT_OPS_LISTEN": one}, log)
            for one, log in zip(ops, logs, strict=True)
        )
    )
    try:
        yield started, ops
    finally:
        await asyncio.gather(*(process.stop() for process in started))


async def run(stage: Stage, urls: DatabaseUrls, cell: Cell, folder: Path) -> dict[str, object]:
    """Run one cell, and return its figures."""
    load, filling = Load(), Load()
    async with (
        processes(stage, cell, folder) as (started, ops),
        client_load.clients_of([one.address for one in started], cell.clients, stage.user_token) as clients,
    ):
        async with client_load.connections_sampled(urls.admin_url, ops, load):
            await client_load.fill_pools(clients, urls.admin_url, ops, PROCESSES * cell.size, filling)
            await client_load.run_load(clients, SECONDS, load)
        rates = {name: await client_load.hit_rate(ops, f"syncbeat_{name}_cache") for name in ("view", "token")}
    return {
        "path": cell.path,
        "clients": cell.clients,
        "pool": cell.size,
        "calls": len(load.seconds),
        "errors": dict(load.errors + filling.errors),
        "shed": load.shed + filling.shed,
        "p95_ms": load.p95_ms,
        "connections_of_processes": load.pooled,
        "connections_of_postgresql": load.connections,
        "view_hit_rate": rates["view"],
        "token_hit_rate": rates["token"],
    }


def faults(figures: dict[str, object], cell: Cell) -> list[str]:
    """Return what is not as it should be in a cell."""
    pools = PROCESSES * cell.size
    expected = {"errors": {}, "connections_of_processes": pools}
    if cell.path == "direct":
        expected["connections_of_postgresql"] = pools + PROCESSES  # a session each, which listens
    found = [f"{name} is {figures[name]}, not {value}" for name, value in expected.items() if figures[name] != value]
    if cell.path == "pooler" and int(str(figures["connections_of_postgresql"])) > POOLER_CONNECTIONS + PROCESSES:
        found.append("PostgreSQL has more connections than the pooler may open")
    rates = [float(str(figures[name])) for name in ("view_hit_rate", "token_hit_rate")]
    return found + (["a cache is missed too often"] if min(rates) < LEAST_HIT_RATE else [])


@pytest.mark.timeout(600)
async def test_clients_share_the_connections_there_are(
    stage: Stage,
    stores: EmbeddedStores,
    database_urls: DatabaseUrls,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record: Callable[[str, dict[str, object]], None],
) -> None:
    await client_load.people(database_urls.admin_url, max(CLIENTS))
    stage.settings["SYNCBEAT_DATABASE_SESSION_URL"] = database_urls.app_url
    lacks = reason_missing("pgbouncer")
    cells: list[dict[str, object]] = []
    wrong: dict[str, list[str]] = {}

    async def run_all(path: str) -> None:
        for clients in CLIENTS:
            for size in SIZES:
                cell = Cell(clients, size, path)
                cells.append(figures := await run(stage, database_urls, cell, tmp_path))
                if found := faults(figures, cell):
                    wrong[str(cell)] = found

    await run_all("direct")
    if not lacks:
        with pooled(stores, pgbouncer_program()) as behind:
            stage.settings["SYNCBEAT_DATABASE_URL"] = behind.app_url.replace("@/syncbeat?", f"@/{database_urls.name}?")
            await run_all("pooler")
    command = "make prove ARGS='-k clients_share'"
    record("connections", {"command": command, "processes": PROCESSES, "seconds": SECONDS, "cells": cells})
    assert not wrong
    require(request, "PgBouncer", lacks)
