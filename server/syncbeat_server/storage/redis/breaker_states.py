"""Keeps the states of circuit breakers that the processes of a deployment share (ADR 144).

A state is a hash, whose marks (witnesses while it is closed, trials under way while it is open) are a sorted set by the
moment at which each lapses: that of a process which died, too. Time is Redis's own, so that the processes agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.resilience.breaker import BreakerRule
from syncbeat_server.resilience.fleet_breaker import FleetState, Step
from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.script_answers import parsed_answer

_PREFIX = "breaker:"
_VERSION = "breakers"
_WITNESSES = 2
_TRIAL_S = 60.0  # longer than an attempt takes
_KEPT_S = 86_400.0  # after the last change; a generation outlives it in the processes that know it

# KEYS: the state, its marks, the version of all states. ARGV: step, generation, mark, trials, successes, witnesses,
# life of a witness and of a trial (ms), life of the keys (ms). A generation is a moment, so that it is a new one also
# after the keys were lost.
ADVANCE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local s = redis.call('HMGET', KEYS[1], 'generation', 'open', 'ok')
local gen, open, ok = tonumber(s[1]) or 0, tonumber(s[2]) or 0, tonumber(s[3]) or 0
local step, mark, kept, done = ARGV[1], ARGV[3], ARGV[9], 0
local function marks() return #redis.call('ZRANGE', KEYS[2], 0, -1) end
local function hold(life)
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + life), mark)
  redis.call('PEXPIRE', KEYS[2], kept)
end
local function turn(to)
  gen, open, ok, done = math.max(gen + 1, now), to, 0, 1
  redis.call('UNLINK', KEYS[2])
  local text = string.format('%.0f', gen)
  redis.call('HSET', KEYS[1], 'generation', text, 'open', to, 'ok', 0)
  redis.call('SET', KEYS[3], text, 'PX', kept)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))
if step == 'witness' then
  if open == 0 then
    hold(tonumber(ARGV[7]))
    if marks() >= tonumber(ARGV[6]) then turn(1) end
  end
elseif step == 'withdraw' then
  if open == 0 then redis.call('ZREM', KEYS[2], mark) end
elseif open == 1 and gen == tonumber(ARGV[2]) then
  if step == 'acquire' then
    if marks() < tonumber(ARGV[4]) then hold(tonumber(ARGV[8])); done = 1 end
  elseif step == 'fail' then turn(1)
  else
    redis.call('ZREM', KEYS[2], mark)
    if step == 'succeed' then
      ok = ok + 1
      if ok >= tonumber(ARGV[5]) then turn(0) else redis.call('HSET', KEYS[1], 'ok', ok) end
    end
  end
end
if gen > 0 then redis.call('PEXPIRE', KEYS[1], kept) end
return {gen, open, math.max(0, now - gen), done}
"""
READ = """
local t = redis.call('TIME')
local now, found = t[1] * 1000 + math.floor(t[2] / 1000), {}
for _, key in ipairs(KEYS) do
  local s = redis.call('HMGET', key, 'generation', 'open')
  local gen = tonumber(s[1]) or 0
  table.insert(found, gen)
  table.insert(found, tonumber(s[2]) or 0)
  table.insert(found, math.max(0, now - gen))
end
return found
"""


class RedisBreakerStates:
    """The shared states of breakers, in Redis."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus

    async def version(self) -> int:
        """Return a number that changes whenever a state does. Raises DependencyDown."""
        value = await self._bus.read(_VERSION)
        return int(value) if value is not None and value.isdigit() else 0

    async def read(self, names: Sequence[str]) -> list[FleetState]:
        """Return the state of each breaker. Raises DependencyDown."""
        found = await self._bus.run_on_keys(READ, [_PREFIX + name for name in names])
        with parsed_answer():
            return [
                FleetState(int(generation), is_open == 1, age_ms / 1000)
                for _, generation, is_open, age_ms in zip(names, found[::3], found[1::3], found[2::3], strict=True)
            ]

    async def advance(self, name: str, step: Step, generation: int, mark: str, rule: BreakerRule) -> FleetState:
        """Take a step in a generation and return the state after it. Raises DependencyDown."""
        key = _PREFIX + name
        lives = [round(seconds * 1000) for seconds in (2 * rule.open_s, _TRIAL_S, _KEPT_S)]
        found = await self._bus.run_on_keys(
            ADVANCE,
            [key, f"{key}:marks", _VERSION],
            *(step.value, generation, mark, rule.trials, rule.successes, _WITNESSES, *lives),
        )
        with parsed_answer():
            generation, is_open, age_ms, done = found
            return FleetState(int(generation), is_open == 1, age_ms / 1000, done == 1)
