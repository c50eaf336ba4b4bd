"""Limits a rate that all processes of all deployments share: a token bucket in Redis, which warms up from cold.

See ADR 29.
"""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.defaults import PROCESSES_EXPECTED
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import SHARED, RedisBus

# Keeps the tokens as of `at`, and the start of the warm-up. Time is Redis's own, so that the processes agree.
# ARGV: rate per second, burst, seconds to warm up, tokens wanted, cost of each.
ACQUIRE = """
local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
local rate, burst, ramp = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local want, cost = tonumber(ARGV[4]), tonumber(ARGV[5])
local s = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'warm')
local tokens, at, warm = tonumber(s[1]) or burst, tonumber(s[2]) or now, tonumber(s[3]) or now
if now - at > ramp then warm = now end
if ramp > 0 then rate = rate * math.min(1, math.max(1 / 60, (now - warm) / ramp)) end
tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
local granted = math.min(want, math.floor(tokens / cost))
tokens = tokens - granted * cost
redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now, 'warm', warm)
redis.call('EXPIRE', KEYS[1], 3600)
local wait = 0
if granted < want then wait = (cost - tokens) / rate end
return {granted, tostring(wait)}
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """Rate of a bucket: `per_s` in the long run, `burst` at once, reached within `ramp_s` seconds from cold."""

    per_s: float
    burst: float
    ramp_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """Tokens granted, and the seconds after which more can be had."""

    count: int
    wait_s: float


class TokenBucket:
    """Acquires tokens from the shared buckets, or from a bucket of this process while Redis does not answer."""

    def __init__(self, bus: RedisBus, rate: Rate, clock: Clock) -> None:
        self._bus = bus
        self._rate = rate
        self._clock = clock
        self._local: dict[str, tuple[float, float]] = {}

    async def acquire(self, key: str, wanted: int, cost: float) -> Grant:
        """Acquire up to `wanted` tokens of bucket `key`; each costs `cost`, 1 unless the caller has to slow down."""
        if wanted <= 0:
            return Grant(0, 0.0)
        rate = self._rate
        try:
            granted, wait_s = await self._bus.run_script(
                ACQUIRE, [f"{SHARED}rate:{key}"], rate.per_s, rate.burst, rate.ramp_s, wanted, cost
            )
        except DependencyDown:
            return self._acquire_locally(key, wanted, cost)
        return Grant(int(granted), float(wait_s))

    def _acquire_locally(self, key: str, wanted: int, cost: float) -> Grant:
        per_s, most = self._rate.per_s / PROCESSES_EXPECTED, max(1.0, self._rate.burst / PROCESSES_EXPECTED)
        now = self._clock.monotonic()
        tokens, at = self._local.get(key, (most, now))
        tokens = min(most, tokens + (now - at) * per_s)
        granted = min(wanted, int(tokens / cost))
        tokens -= granted * cost
        self._local[key] = (tokens, now)
        return Grant(granted, 0.0 if granted == wanted else max(0.0, (cost - tokens) / per_s))
