"""Keeps the buckets of rates that all processes share, many in one call, on Redis's own clock.

A bucket is one number: the time at which it is empty. A test holds what the script decides to
a function in Python that says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.script_answers import parsed_answer

MOST_ASKS = 500
"""Of one call: a script of a millisecond or two, during which Redis serves nobody else."""

HELD_S = 0.06
"""Seconds for which the last units of a bucket are held after it became more than half full: by then every process has
charged what it used on credit."""

_BUCKET = f"""
local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
local function read(key, rate, burst, most)
  local value = redis.call('GET', key)
  local known, since = string.match(value or '0 0', '^(%S+) (%S+)$')
  local used = math.min(most, math.max(0, ((tonumber(known) or 0) - now) * rate))
  if used <= burst / 2 then since = now end
  return used, math.min(now, tonumber(since) or now)
end
local function write(key, rate, used, since)
  local value = string.format('%.7f %.7f', now + used / rate, since)
  redis.call('SET', key, value, 'PX', math.ceil(used / rate * 1000) + 1000)
end
local function held(used, burst, since, units)
  if used > burst / 2 and now - since >= {HELD_S} then return 0 end
  return units
end
"""
# ARGV, for each key: units a second, burst, the most that may count as in use, units to charge (negative: to give
# back), the fewest and the most that are wanted, units to hold. Answers with units granted and units in use, for each.
# A clock that jumped back would make a bucket look fuller than it can be, hence `most`.
SETTLE = (
    _BUCKET
    + """
local answers = {}
for i, key in ipairs(KEYS) do
  local words = {}
  for word in string.gmatch(ARGV[i], '%S+') do words[#words + 1] = tonumber(word) end
  local rate, burst, most, charged, least, wanted, kept = unpack(words)
  local used, since = read(key, rate, burst, most)
  used = math.max(0, math.min(most, used + charged))
  local free, granted = math.floor(math.max(0, burst - used - held(used, burst, since, kept)) + 1e-6), 0
  if free >= least then granted = math.min(wanted, free) end
  used = used + granted
  if used > 0 or charged < 0 then write(key, rate, used, since) end
  answers[2 * i - 1], answers[2 * i] = string.format('%.6f', granted), string.format('%.6f', used)
end
return answers
"""
)
# Charges buckets for what was used already. ARGV: the prefix of keys; a line for each: key, tab, units a second, burst,
# the most that may count as in use, units. All in one argument, and an answer only for buckets that are more than half
# in use (number of the line, units in use): most callers are far from their limits, and this is what each costs.
CHARGE = (
    _BUCKET
    + """
local answers, number = {}, 0
for line in string.gmatch(ARGV[2], '[^\\n]+') do
  local name, rate, burst, most, units = string.match(line, '^(.*)\\t(%S+) (%S+) (%S+) (%S+)$')
  local key = ARGV[1] .. name
  rate, burst, most = tonumber(rate), tonumber(burst), tonumber(most)
  local used, since = read(key, rate, burst, most)
  used = math.min(most, used + tonumber(units))
  write(key, rate, used, since)
  if used > burst / 2 then
    answers[#answers + 1], answers[#answers + 2] = tostring(number), string.format('%.6f', used)
  end
  number = number + 1
end
return answers
"""
)
# Marks a process as there, and counts those that are. ARGV: the process, the life of its mark in seconds.
COUNT = """
local now = redis.call('TIME'); now = now[1] + now[2] / 1e6
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], 0, now)
redis.call('PEXPIRE', KEYS[1], ARGV[2] * 1000)
return {#redis.call('ZRANGE', KEYS[1], 0, -1)}
"""

UNCOUNT = "return {redis.call('ZREM', KEYS[1], ARGV[1])}"
"""Takes back the mark of a process. ARGV: the process."""


class Ask(NamedTuple):
    """One bucket that is asked: its key and rate, what to charge for what was used already, and what is wanted.

    `charged` is negative for units that are given back. Fewer than `least` are not granted. `held` units are left for
    what others have used and not charged yet, until `HELD_S` after the bucket became more than half full.
    """

    key: str
    per_second: float
    burst: int
    most_used: float
    charged: float
    least: float
    wanted: float
    held: float = 0.0


class Answer(NamedTuple):
    """Units granted, and those in use from then on by all processes."""

    granted: float
    used: float


async def settle(bus: RedisBus, asks: Sequence[Ask]) -> list[Answer]:
    """Ask at most `MOST_ASKS` buckets of this deployment in one call.

    Raises:
        DependencyDown: Redis does not answer.
    """
    keys = [f"{bus.own}limit:{ask.key}" for ask in asks]
    arguments = [
        f"{ask.per_second:.9g} {ask.burst} {ask.most_used:.9g} {ask.charged:.9g} "
        f"{ask.least:.9g} {ask.wanted:.9g} {ask.held:.9g}"
        for ask in asks
    ]
    found = await bus.run_script(SETTLE, keys, *arguments)
    with parsed_answer():
        numbers = [float(one) for one in found]
        return [Answer(*pair) for _, *pair in zip(asks, numbers[::2], numbers[1::2], strict=True)]


async def charge(bus: RedisBus, lines: Sequence[str]) -> dict[int, float]:
    """Charge buckets for what was used already, each by a line as `CHARGE` takes it.

    Returns the units in use of those that are more than half in use, by the number of their line.

    Raises:
        DependencyDown: Redis does not answer.
    """
    found = await bus.run_script(CHARGE, [], f"{bus.own}limit:", "\n".join(lines))
    with parsed_answer():
        return {int(number): float(used) for number, used in zip(found[::2], found[1::2], strict=True)}


async def count_processes(bus: RedisBus, process: str, seconds: float) -> int:
    """Mark this process as there for so many seconds; return how many are.

    Raises:
        DependencyDown: Redis does not answer.
    """
    found = await bus.run_script(COUNT, [f"{bus.own}limits:processes"], process, seconds)
    with parsed_answer():
        (count,) = found
        return int(count)


async def uncount_process(bus: RedisBus, process: str) -> None:
    """Take back the mark of this process, which ends.

    Raises:
        DependencyDown: Redis does not answer.
    """
    await bus.run_script(UNCOUNT, [f"{bus.own}limits:processes"], process)
