"""The processes of the push figures: a fake FCM over TLS and HTTP/2, a server and a worker."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from bench import h2load
from bench.processes import COMMAND, ROOT, RunningProcess, running_process
from bench.stage import SEND, SERVICE_TOKEN, Cpu, add_users, call, migrated_stores, our_server
from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.providers.fcm import AccessTokens

USERS = 2_000
_TIMEOUT_S = 120.0
_QUEUED = """
SELECT EXISTS (SELECT 1 FROM deliveries WHERE app_id = 'default' AND state IN ('PENDING', 'HELD', 'SCHEDULED'))
    OR EXISTS (SELECT 1 FROM deliveries WHERE state = 'IN_FLIGHT')
"""


@dataclass(frozen=True)
class PushRun:
    """The cost of a batch of deliveries, from the first call to the last recorded SENT."""

    count: int
    seconds: float
    cpu_us: float
    worker_cpu_us: float
    database_cpu_us: float


@dataclass(frozen=True)
class PushStage:
    """The running processes."""

    stores: EmbeddedStores
    fake: RunningProcess
    account: Path
    ca: str
    server: RunningProcess
    worker: RunningProcess
    users: list[str]

    def push(self, calls: int, each: int) -> PushRun:
        """Send `calls` notifications to `each` users one after the other, and wait until all of them are SENT."""
        database = self.stores.pids[0]
        assert database is not None
        pids = (self.server.pid, self.worker.pid, database)
        before = [Cpu.now(pid) for pid in pids]
        count, took = asyncio.run(self._push(calls, each))
        server, worker, postgres = (Cpu.now(pid).since(cpu)[0] for pid, cpu in zip(pids, before, strict=True))
        costs = [used / count * 1e6 for used in (server + worker, worker, postgres)]
        return PushRun(count, took, *costs)

    def request(self, each: int, first: int = 0) -> bytes:
        """Return a request for a message to so many users."""
        ids = [self.users[(first + number) % len(self.users)] for number in range(each)]
        shown = core_pb2.Notification(title="Anna", body="is reading page 12 with you")
        return push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=ids), notification=shown
        ).SerializeToString()

    def run_firebase(self, count: int) -> tuple[float, float]:
        """Send with firebase-admin to the same fake. Returns messages per second, and microseconds of CPU for each."""
        trusted = {"SSL_CERT_FILE": self.ca, "REQUESTS_CA_BUNDLE": self.ca, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "bench.firebase_sender", str(self.account), self.fake.address, str(count)]
        done = subprocess.run(command, env={**os.environ, **trusted}, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        return told["per_s"], told["cpu_us"]

    def ceiling(self, seconds: float) -> float | None:
        """Return the sends per second that the fake itself accepts over TLS and HTTP/2; None without h2load."""
        if not h2load.is_installed():
            return None
        os.environ["SSL_CERT_FILE"] = os.environ["REQUESTS_CA_BUNDLE"] = self.ca  # of aiohttp, and of requests
        tokens = AccessTokens(self.account, SystemClock())
        bearer = asyncio.run(tokens.current())
        headers = [("authorization", f"Bearer {bearer}"), ("content-type", "application/json")]
        message = {"message": {"token": "token-of-user-00000", "notification": {"title": "Anna", "body": "is reading"}}}
        url = f"{self.fake.address}/v1/projects/{tokens.project_id}/messages:send"
        return h2load.run_http2(url, json.dumps(message).encode(), headers, seconds).per_second

    async def _push(self, calls: int, each: int) -> tuple[int, float]:
        # Deliveries are counted in the database, where SENT is recorded.
        connection = await asyncpg.connect(self.stores.app_url)
        try:
            before = await count_sent(connection)
            started = time.perf_counter()
            accepted = 0
            for number in range(calls):
                request = self.request(each, number * each)
                answer = await asyncio.to_thread(call, self.server.address, SEND, request, SERVICE_TOKEN)
                accepted += push_service_pb2.SendNotificationResponse.FromString(answer).delivery_count
            assert accepted == calls * each
            await wait_until_sent(connection, before + accepted)
            return accepted, time.perf_counter() - started
        finally:
            await connection.close()


@contextmanager
def push_stage(*, worker: bool = True) -> Iterator[PushStage]:
    """Start all processes for the block; without a worker accepted deliveries stay queued."""
    users = [f"user-{number:05}" for number in range(USERS)]
    with ExitStack() as stack:
        account = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="syncbeat-bench-")), "account.json")
        command = [*COMMAND, "fake-fcm", "--tls", "--credentials", str(account)]
        fake = stack.enter_context(running_process(command, "fake-fcm: serving on"))
        ca = next(line.split()[-1] for line in fake.lines if "CA certificate" in line)
        stores = stack.enter_context(migrated_stores())
        add_users(stores, users, pushable=True)
        settings = {
            "SYNCBEAT_FCM_CREDENTIALS": str(account),
            "SYNCBEAT_FCM_BASE_URL": fake.address,
            # The pipeline is measured without FCM's ramp-up rule for new senders: see `ramp` in the figures.
            "SYNCBEAT_PUSH_RAMP_S": "0",
            "SSL_CERT_FILE": ca,
            "REQUESTS_CA_BUNDLE": ca,
        }
        server = stack.enter_context(our_server(stores, "rpc", **settings))
        delivering = stack.enter_context(our_server(stores, "worker", **settings)) if worker else server
        yield PushStage(stores, fake, account, ca, server, delivering, users)


async def count_sent(connection: asyncpg.Connection) -> int:
    """Return the number of deliveries that are SENT."""
    return int(await connection.fetchval("SELECT count(*) FROM deliveries WHERE state = 'SENT'"))


async def wait_until_sent(connection: asyncpg.Connection, count: int) -> None:
    """Wait until the queue is empty, and check that so many deliveries are SENT.

    It queries the queue's own indexes: counting all rows repeatedly would burden the measured database.
    """
    async with asyncio.timeout(_TIMEOUT_S):
        while await connection.fetchval(_QUEUED):  # noqa: ASYNC110  # another process sends
            await asyncio.sleep(0.02)
    assert await count_sent(connection) == count
