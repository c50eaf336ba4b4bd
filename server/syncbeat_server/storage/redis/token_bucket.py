"""A rate that all processes of all deployments share: a token bucket in Redis, which warms up from cold (ADR 29)."""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.bus import RedisBus

_ALONE = 8.0
"""Without Redis each process takes this part of the rate: more than that many are not expected to send."""

# tokens as of `at`, and since when it is warm. Time is Redis's own, so that the processes agree.
# ARGV: rate per second, burst, seconds to warm up, how many are wanted, what each costs.
TAKE = """
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
    """`per_s` in the long run, `burst` at once; from cold it takes `ramp_s` to reach the full rate."""

    per_s: float
    burst: float
    ramp_s: float


@dataclass(frozen=True, slots=True)
class Grant:
    """How many may be sent, and in how many seconds it is worth asking again."""

    count: int
    wait_s: float


class Allowance:
    """Takes from the buckets. When Redis does not answer, from one of this process."""

    def __init__(self, bus: RedisBus, rate: Rate, clock: Clock) -> None:
        self._bus = bus
        self._rate = rate
        self._clock = clock
        self._alone: dict[str, tuple[float, float]] = {}

    async def take(self, key: str, wanted: int, cost: float) -> Grant:
        """Up to `wanted` tokens of the bucket `key`; each costs `cost`, 1 unless the caller has to go slower."""
        if wanted <= 0:
            return Grant(0, 0.0)
        rate = self._rate
        try:
            granted, wait_s = await self._bus.run_script(
                TAKE, f"rate:{key}", rate.per_s, rate.burst, rate.ramp_s, wanted, cost
            )
        except DependencyDown:
            return self._take_alone(key, wanted, cost)
        return Grant(int(granted), float(wait_s))

    def _take_alone(self, key: str, wanted: int, cost: float) -> Grant:
        per_s, most, now = self._rate.per_s / _ALONE, max(1.0, self._rate.burst / _ALONE), self._clock.monotonic()
        tokens, at = self._alone.get(key, (most, now))
        tokens = min(most, tokens + (now - at) * per_s)
        granted = min(wanted, int(tokens / cost))
        tokens -= granted * cost
        self._alone[key] = (tokens, now)
        return Grant(granted, 0.0 if granted == wanted else max(0.0, (cost - tokens) / per_s))
