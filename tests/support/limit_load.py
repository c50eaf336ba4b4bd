"""A process that takes units of shared limits as its part of a load, and writes each call and its answer.

`python -m tests.support.limit_load REDIS_URL BEGIN SEED PROCESSES SECONDS` prints a line for each call, with
principal, time of the answer (CLOCK_MONOTONIC, which all processes of a machine share), and 1 for an admitted one.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from heapq import merge

from syncbeat_server.clock import SystemClock
from syncbeat_server.ratelimit.lease import LeaseKey, LeaseRule, LimitRule, PendingTake
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate
from syncbeat_server.ratelimit.shared_limits import SharedLimits
from tests.support.fake_clock import wait_until
from tests.support.valkeys import open_redis

PRINCIPALS = 1_000
# So slow that a burst which a busy machine stretches over ten seconds is refused nearly as much as one at once.
RATE = Rate(0.5, 20)
DEPLOYMENT = "limit-load"
RULE = LimitRule("app:user:principal:hint:", RATE, LimitSubject.PRINCIPAL, MethodClass.HINT)

Call = tuple[float, int]


def arrivals(seed: int, processes: int, seconds: float) -> list[Call]:
    """Return the calls of one process by time: of each principal a part of its Poisson stream, or of its bursts."""
    # Streams are those of the principals; a Poisson process is divided by drawing a process for each arrival.
    chance = random.Random(seed)
    return list(merge(*(_calls_of(principal, chance, processes, seconds) for principal in range(PRINCIPALS))))


def _calls_of(principal: int, chance: random.Random, processes: int, seconds: float) -> Iterator[Call]:
    if principal % 2:
        # Twice to eight times the rate, of which each process has its part: the bucket of the fast ones is used up.
        per_second = RATE.per_second * (2.0 + 6.0 * principal / PRINCIPALS) / processes
        at = chance.expovariate(per_second)
        while at < seconds:
            yield at, principal
            at += chance.expovariate(per_second)
        return
    # The time of a burst is the principal's, the same in every process; its size is up to three times the bucket's.
    own = random.Random(principal)
    start, size = own.uniform(0.0, seconds), own.uniform(0.5, 3.0) * RATE.burst
    yield from sorted((start + chance.uniform(0.0, 0.1), principal) for _ in range(round(size / processes)))


async def admit(limits: SharedLimits, key: LeaseKey, now: float, cost: float = 1.0) -> bool:
    """Take from one bucket, waiting if that is asked for; return whether the call is admitted."""
    taken = limits.take([(key, cost)], now)
    return (await limits.finish(taken) if isinstance(taken, PendingTake) else taken) is None


async def _load(url: str, calls: list[Call], begin: float) -> list[tuple[int, float, bool]]:
    clock, done, position = SystemClock(), list[tuple[int, float, bool]](), 0
    waiting = set[asyncio.Task[None]]()

    async def call(principal: int, now: float) -> None:
        admitted = await admit(limits, (RULE, str(principal)), now)
        done.append((principal, clock.monotonic(), admitted))

    def send_due() -> bool:
        nonlocal position
        while position < len(calls) and begin + calls[position][0] <= clock.monotonic():
            task = asyncio.ensure_future(call(calls[position][1], clock.monotonic()))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            position += 1
        return position == len(calls) and not waiting

    async with open_redis(url, clock, DEPLOYMENT) as bus:
        limits = SharedLimits(bus, clock, LeaseRule(answer_s=20.0))
        limits.activate()
        running = asyncio.ensure_future(limits.run())
        await wait_until(send_due, timeout_s=300.0)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await limits.close()
    return done


def main(url: str, begin: str, seed: str, processes: str, seconds: str) -> None:
    """Play the part of one process, from the given time on."""
    calls = arrivals(int(seed), int(processes), float(seconds))
    for principal, now, admitted in asyncio.run(_load(url, calls, float(begin))):
        print(principal, now, int(admitted))


if __name__ == "__main__":
    main(*sys.argv[1:])
