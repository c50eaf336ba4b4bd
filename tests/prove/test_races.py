"""A thousand races of refresh against revoke on two server processes, and then both are killed: nothing lives on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from syncbeat import SyncbeatClient, explain
from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import directory_service_pb2
from syncbeat.v1.error_reason_pb2 import ErrorReason
from syncbeat_devtools.demo.stage import Stage
from tests.support.fake_clock import wait_until

pytestmark = pytest.mark.prove

RACES, AT_ONCE = 1_000, 25
REVOKED = "ERROR_REASON_TOKEN_REVOKED"
DEVICES = directory_service_pb2.ListDevicesRequest()


async def outcome(call: Any) -> Any:
    """Return what a call answers, or the reason that it is refused for."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return ErrorReason.Name(explain(error).reason)


class Pair:
    """Two servers, and who speaks to each: the backend, and whoever has a token."""

    def __init__(self, stage: Stage) -> None:
        self.backends = [stage.client(stage.identity.service_token, server) for server in stage.servers]
        self.public = [stage.client("", server) for server in stage.servers]

    async def close(self) -> None:
        for client in (*self.backends, *self.public):
            await client.close()

    async def refresh(self, client: SyncbeatClient, token: str) -> Any:
        return await outcome(client.auth.RefreshSession(pb.RefreshSessionRequest(refresh_token=token)))

    async def use(self, client: SyncbeatClient, token: str) -> Any:
        metadata = (("authorization", f"Bearer {token}"),)
        return await outcome(client.directory.ListDevices(DEVICES, metadata=metadata))

    async def alive(self, tokens: list[Any]) -> int:
        """Return how many of these tokens are good for anything on either server."""
        calls = [self.use(client, one.access_token) for one in tokens for client in self.public]
        calls += [self.refresh(client, one.refresh_token) for one in tokens for client in self.public]
        return sum(not isinstance(answer, str) for answer in await asyncio.gather(*calls))


async def race(pair: Pair, number: int, came_to: Counter[str]) -> list[Any]:
    """Both servers refresh one token while one of them revokes; the tokens that came of it."""
    backend = pair.backends[number % 2]
    first = await backend.auth.CreateSession(pb.CreateSessionRequest(user_id=f"user-{number}"))
    revoke: Any = backend.auth.RevokeUser(pb.RevokeUserRequest(user_id=f"user-{number}"))
    if number % 4 < 2:
        request = pb.RevokeSessionRequest(user_id=f"user-{number}", session_id=first.session_id)
        revoke = backend.auth.RevokeSession(request)
    *refreshed, _ = await asyncio.gather(
        *(pair.refresh(client, first.refresh_token) for client in pair.public), outcome(revoke)
    )
    came_to.update("refused" if isinstance(one, str) else "refreshed" for one in refreshed)
    assert {one for one in refreshed if isinstance(one, str)} <= {REVOKED}
    return [first, *(one for one in refreshed if not isinstance(one, str))]


@pytest.mark.timeout(300)
async def test_revoke_racing_refresh_on_two_processes(
    stage: Stage, record: Callable[[str, dict[str, object]], None]
) -> None:
    # All come from one address, and most are refused.
    stage.settings |= {"SYNCBEAT_REFRESHES_PER_MINUTE": "1000000", "SYNCBEAT_WRONG_REFRESHES_PER_MINUTE": "1000000"}
    await stage.start_all()
    pair, came_to = Pair(stage), Counter[str]()
    tokens: list[Any] = []
    for start in range(0, RACES, AT_ONCE):
        for made in await asyncio.gather(*(race(pair, start + number, came_to) for number in range(AT_ONCE))):
            tokens += made

    async def all_dead() -> bool:  # the other process hears of the last revocations within two seconds
        return await pair.alive(tokens[-3 * AT_ONCE :]) == 0

    await wait_until(all_dead, timeout_s=2.0)
    alive = 0
    for start in range(0, len(tokens), 100):
        alive += await pair.alive(tokens[start : start + 100])
    await pair.close()

    # What was decided is in the database: killed and started anew, the servers say the same.
    for server in stage.servers:
        await server.kill()
    stage.servers.clear()
    await stage.start_all()
    again = Pair(stage)
    after = await again.alive(tokens[:300])
    await again.close()
    await stage.stop()
    figures = {"outcomes": dict(came_to), "tokens": len(tokens), "alive": alive, "alive_after_kill_9": after}
    record("races", {"races": RACES, **figures})
    assert (alive, after) == (0, 0)
    assert min(came_to["refreshed"], came_to["refused"]) > RACES // 50, came_to
