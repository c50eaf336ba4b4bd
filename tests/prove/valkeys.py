"""A Valkey, its replica, and the sentinels that watch them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.valkeys import PRIMARY, Valkey, running_sentinel, running_valkey, sentinel_url

DOWN_AFTER_S = 2.0
_SENTINELS = 3
_QUORUM = 2
_FAILOVER_TIMEOUT_S = 10.0  # of a failover that stalls; another is tried after twice as long


@dataclass
class Pair:
    """A primary and its replica, and the sentinels that watch them, if any."""

    primary: Valkey
    replica: Valkey
    sentinels: list[Valkey] = field(default_factory=list)

    def url(self) -> str:
        """The address of the primary by its sentinels."""
        return sentinel_url(*self.sentinels)

    def in_step(self) -> bool:
        """Return whether the replica has all that the primary has, by what the primary says."""
        with self.primary.client() as client:
            return any(
                replica["state"] == "online"
                for name, replica in client.info("replication").items()
                if name.startswith("slave") and isinstance(replica, dict)
            )

    def watched(self) -> bool:
        """Return whether each sentinel knows the replica and the other sentinels: only then they can fail over."""

        def knows_all(sentinel: Valkey) -> bool:
            with sentinel.client() as client:
                known = client.sentinel_master(PRIMARY)
            return bool(known["num-slaves"] == 1 and known["num-other-sentinels"] == len(self.sentinels) - 1)

        return all(map(knows_all, self.sentinels))


@contextmanager
def running_pair(folder: Path, *, sentinels: bool) -> Iterator[Pair]:
    """A primary and a replica for the block, with three sentinels or none; all end with this process."""
    with ExitStack() as stack:
        pair = Pair(stack.enter_context(running_valkey(folder)), stack.enter_context(running_valkey(folder)))
        pair.replica.follow(pair.primary)
        for _ in range(_SENTINELS if sentinels else 0):
            sentinel = running_sentinel(
                folder,
                pair.primary,
                quorum=_QUORUM,
                down_after_ms=int(DOWN_AFTER_S * 1_000),
                failover_timeout_ms=int(_FAILOVER_TIMEOUT_S * 1_000),
            )
            pair.sentinels.append(stack.enter_context(sentinel))
        yield pair
