"""The processes of the story: two servers, a worker and the fake FCM, with clients for them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from syncbeat import SyncbeatClient
from syncbeat_devtools.demo.devices import FakeFcmClient
from syncbeat_devtools.demo.processes import Identity, Process, start_process
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.auth.tokens.verify import mint

# Short times, so that the story takes seconds where production takes minutes.
_FAST = {
    "SYNCBEAT_LISTEN": "127.0.0.1:0",
    "SYNCBEAT_DELIVERY_LEASE_S": "1.5",
    "SYNCBEAT_DELIVERY_POLL_S": "0.2",
    "SYNCBEAT_DELIVERY_RETRY_S": "0.3",
    "SYNCBEAT_DRAIN_S": "5",
    "SYNCBEAT_LOG_LEVEL": "WARNING",
}


@dataclass
class Stage:
    """The running processes of a story, their settings and credentials."""

    stores: EmbeddedStores
    identity: Identity
    folder: Path
    settings: dict[str, str]
    fake_fcm: FakeFcmClient
    servers: list[Process] = field(default_factory=list)
    _started: list[Process] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    worker: Process | None = None

    async def start_all(self) -> None:
        """Start two servers and a worker."""
        await asyncio.gather(self.start_server(), self.start_server(), self.start_worker())

    async def start_server(self) -> Process:
        """Start one more server process, in the role that serves RPCs only."""
        log = self.folder / f"server-{next(self._numbers)}.log"
        server = await start_process(["serve"], {**self.settings, "SYNCBEAT_ROLE": "rpc"}, log)
        self.servers.append(server)
        self._started.append(server)
        return server

    async def start_worker(self) -> Process:
        """Start the delivery worker as a process of its own."""
        self.worker = await start_process(["worker"], self.settings, self.folder / f"worker-{next(self._numbers)}.log")
        self._started.append(self.worker)
        return self.worker

    async def stop(self) -> None:
        """End all processes that still run by SIGTERM."""
        await asyncio.gather(*(process.stop() for process in self._started))

    def client(self, token: str, *servers: Process) -> SyncbeatClient:
        """Return a client that prefers the first server, and fails over to the next."""
        addresses = ",".join(server.address for server in servers or self.servers)
        return SyncbeatClient(f"ipv4:{addresses}", token=token, tls=False)

    def user_token(self, user_id: str) -> str:
        """Return an access token, signed as the app's own backend signs it."""
        return mint(self.identity.key, user_id, datetime.now(UTC), timedelta(hours=1))


@asynccontextmanager
async def running_stage(stores: EmbeddedStores, folder: Path, *, database_url: str = "") -> AsyncIterator[Stage]:
    """Start the fake FCM and prepare the settings of servers and workers; all of them end with the block.

    `database_url` overrides the database of the stores.
    """
    identity = Identity.new()
    credentials = folder / "service-account.json"
    async with AsyncExitStack() as stack:
        fake = await start_process(["fake-fcm", "--credentials", str(credentials)], {}, folder / "fake-fcm.log")
        stack.push_async_callback(fake.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        settings = {
            **_FAST,
            **identity.settings(),
            "SYNCBEAT_DATABASE_URL": database_url or stores.app_url,
            "SYNCBEAT_REDIS_URL": stores.redis_url,
            "SYNCBEAT_FCM_CREDENTIALS": str(credentials),
            "SYNCBEAT_FCM_BASE_URL": fake.address,
        }
        stage = Stage(stores, identity, folder, settings, FakeFcmClient(session, fake.address))
        stack.push_async_callback(stage.stop)
        yield stage
