"""Four processes with 1,000 principals admit what one exact bucket for each would admit, within 3 %."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from syncbeat_server.ratelimit.policy.gcra import take
from tests.support.limit_load import PRINCIPALS, RATE

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
PROCESSES, SECONDS = 4, 8.0
_START_S = 4.0  # until all processes have started


async def play(url: str, seed: int, begin: float) -> list[tuple[float, int, bool]]:
    """Run one process; return its calls."""
    command = [sys.executable, "-m", "tests.support.limit_load", url, *map(str, (begin, seed, PROCESSES, SECONDS))]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    lines = (line.split() for line in output.decode().splitlines())
    return [(float(now), int(principal), admitted == "1") for principal, now, admitted in lines]


async def test_rate_limit_of_four_processes_is_within_3_percent_of_exact_buckets(redis_url: str) -> None:
    begin = time.monotonic() + _START_S
    played = await asyncio.gather(*(play(redis_url, seed, begin) for seed in range(PROCESSES)))
    calls = sorted(call for one in played for call in one)
    admitted, exact, drained_at = Counter[int](), Counter[int](), defaultdict[int, float](float)
    for now, principal, was_admitted in calls:
        admitted[principal] += was_admitted
        decision, drained_at[principal] = take(RATE, drained_at[principal], now)
        exact[principal] += decision.allowed
    assert len(exact) == PRINCIPALS
    refused = len(calls) - exact.total()
    assert refused > 0.1 * len(calls), "the load is not above the limits"
    for kind in (0, 1):  # bursts, Poisson streams
        ours = sum(count for principal, count in admitted.items() if principal % 2 == kind)
        right = sum(count for principal, count in exact.items() if principal % 2 == kind)
        assert ours == pytest.approx(right, rel=0.03), (kind, ours, right)
    # Each principal by itself: a bucket is whole calls, of which one is 5 % of its burst.
    errors = [abs(admitted[one] - exact[one]) for one in range(PRINCIPALS)]
    print(f"calls {len(calls)}, exact {exact.total()}, ours {admitted.total()}, errors {Counter(errors)}")
    assert max(errors) <= PROCESSES
    assert sum(error <= 1 for error in errors) >= 0.97 * PRINCIPALS
