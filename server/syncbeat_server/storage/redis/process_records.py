"""Keeps a record of each process of a deployment, as long as the process keeps writing it.

A record is a key of its own that expires; a sorted set by the moment of expiry names those that there are. Time is
Redis's own. More than `most` are not kept: the one that expires first goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.storage.redis.bus import RedisBus
from syncbeat_server.storage.redis.script_answers import parsed_answer

_INDEX = "processes"
_PREFIX = "process:"

# KEYS: the names, the record. ARGV: the process, its record, the life of a record (ms), the prefix of records, the most
# that are kept. The names outlive records, whose lives differ between versions.
WRITE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1 - ARGV[5])) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('UNLINK', ARGV[4] .. name)
end
redis.call('PEXPIRE', KEYS[1], 3600000)
return {}
"""
# KEYS: the names. ARGV: the prefix of records, the most that are wanted. Answers with how many there are, and records.
READ = """
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local names = redis.call('ZRANGE', KEYS[1], 0, -1)
local found = {#names}
for i = 1, math.min(#names, tonumber(ARGV[2])) do
  local record = redis.call('GET', ARGV[1] .. names[i])
  if record then table.insert(found, record) end
end
return found
"""
FORGET = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('UNLINK', KEYS[2])
return {}
"""


async def write_record(bus: RedisBus, process: str, record: str, seconds: float, most: int) -> None:
    """Write the record of a process, which lives for so many seconds.

    Raises:
        DependencyDown: Redis does not answer.
    """
    keys = [f"{bus.own}{_INDEX}", f"{bus.own}{_PREFIX}{process}"]
    await bus.run_script(WRITE, keys, process, record, round(seconds * 1000), f"{bus.own}{_PREFIX}", most)


async def read_records(bus: RedisBus, most: int) -> tuple[int, Sequence[bytes]]:
    """Return how many processes there are, and the records of `most` of them at most.

    Raises:
        DependencyDown: Redis does not answer, or another program wrote to a key.
    """
    found = await bus.run_script(READ, [f"{bus.own}{_INDEX}"], f"{bus.own}{_PREFIX}", most)
    with parsed_answer():
        count, *records = found
        return int(count), [bytes(one) for one in records]


async def forget_record(bus: RedisBus, process: str) -> None:
    """Forget a process, which ends.

    Raises:
        DependencyDown: Redis does not answer.
    """
    await bus.run_script(FORGET, [f"{bus.own}{_INDEX}", f"{bus.own}{_PREFIX}{process}"], process)
