"""Holds the scripts that mark keys as held, and ask if they are: presence, above all."""

from __future__ import annotations

# The holders of a key, each with an expiry of its own: a sorted set of holders by the millisecond at which their marks
# expire, on Redis's clock. The key expires with its last mark, so that it exists as long as anybody holds it.
# ARGV: the holder, the life of its mark (ms).
MARK = """
local now = redis.call('TIME'); now = now[1] * 1000 + math.floor(now[2] / 1000)
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[2], ARGV[1])
  redis.call('ZREMRANGEBYSCORE', key, 0, now)
  redis.call('PEXPIREAT', key, redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
end
"""
UNMARK = """
for _, key in ipairs(KEYS) do
  if redis.call('ZREM', key, ARGV[1]) == 1 then
    local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
    if newest then redis.call('PEXPIREAT', key, newest) end
  end
end
"""
EXISTS = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('EXISTS', key) end
return found
"""
