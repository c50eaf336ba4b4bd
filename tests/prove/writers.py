"""Writers that repeat each publish under its id until it is acknowledged, and look afterwards for what is there."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

import asyncpg
import grpc

from syncbeat import SyncbeatClient
from syncbeat.v1 import core_pb2, sync_service_pb2
from tests.support.fake_clock import wait_until

_TRY_S = 5.0
_GIVE_UP_S = 120.0


@dataclass
class Written:
    """Records what was acknowledged: the sequence of each scope's keys, and when; and how the others failed."""

    sequences: dict[str, dict[str, int]] = field(default_factory=dict)
    at: dict[str, list[float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    pause_s: float = 0.0
    """Seconds that each writer waits between two publishes."""

    @property
    def count(self) -> int:
        """Return how many publishes were acknowledged."""
        return sum(map(len, self.sequences.values()))

    def after(self, moment: float) -> list[str]:
        """The scopes that had something acknowledged after this moment (time.monotonic)."""
        return sorted(scope for scope, times in self.at.items() if times and times[-1] > moment)

    def longest_silence(self) -> float:
        """The longest time in seconds in which nothing was acknowledged between two that were."""
        moments = sorted(moment for times in self.at.values() for moment in times)
        return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)

    def together(self, other: Written) -> Written:
        """Return what both were acknowledged, of writers whose keys differ."""
        scopes = self.sequences.keys() | other.sequences.keys()
        return Written({one: self.sequences.get(one, {}) | other.sequences.get(one, {}) for one in scopes})

    async def write(self, client: SyncbeatClient, scope: str, prefix: str, over: asyncio.Event) -> None:
        """Publish to a scope until it is over: key after key, each under one id until it is acknowledged."""
        sequences = self.sequences.setdefault(scope, {})
        times = self.at.setdefault(scope, [])
        count, ended = 0, asyncio.ensure_future(over.wait())
        while not ended.done():
            key = f"{prefix}-{count}"
            count += 1
            request = sync_service_pb2.PublishChangesRequest(
                request_id=f"{scope}-{key}",
                changes=[core_pb2.NewChange(scope=scope, key=key, merge_patch_json=f'"{key}"')],
            )

            async def acknowledged(request: sync_service_pb2.PublishChangesRequest = request) -> int:
                try:
                    answer = await client.sync.PublishChanges(request, timeout=_TRY_S)
                except grpc.aio.AioRpcError as error:
                    self.failures[error.code().name] += 1
                    return 0
                return answer.results[0].sequence

            sequences[key] = await wait_until(acknowledged, _GIVE_UP_S, f"{scope} takes {key}")
            times.append(time.monotonic())
            await asyncio.wait((ended,), timeout=self.pause_s)


async def differences(url: str, written: Written) -> dict[str, int]:
    """Return what was acknowledged and is not there as it was, and what is there more than once.

    A publish that was done twice takes two sequences for its one key: then a scope has more sequences than keys.
    """
    conn = await asyncpg.connect(url)
    try:
        rows = await conn.fetch("SELECT scope, key, sequence FROM changes WHERE app_id = 'default'")
        heads = await conn.fetch("SELECT scope, head FROM scopes WHERE app_id = 'default'")
    finally:
        await conn.close()
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["scope"], {})[row["key"]] = row["sequence"]
    lost = sum(
        found.get(scope, {}).get(key) != sequence
        for scope, sequences in written.sequences.items()
        for key, sequence in sequences.items()
    )
    doubled = sum(row["head"] - len(found.get(row["scope"], {})) for row in heads if row["scope"] in written.sequences)
    return {"lost": lost, "doubled": doubled}
