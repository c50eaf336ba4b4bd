"""Redis: wake-ups between processes and who has a live stream. It makes things fast; losing it loses no data.

The names of keys and channels are completed here, and nowhere else: they begin with the deployment's id, so that those
which use one Redis do not hear each other. Only the keys of `run_script` are everybody's.

Nothing here is awaited on a caller's path but `present`, which the delivery worker asks once a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import redis.asyncio
from redis.exceptions import RedisError

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown

_log = logging.getLogger(__name__)

_SHARED = "syncbeat:"
_TIMEOUT_S = 1.0
_MAX_QUEUED = 10_000
_PIPELINE = 500
_RECONNECT_S = 0.5
_PING_S = 5.0

# Who holds a key, each until a moment of its own: a sorted set of holders by the millisecond at which their marks end,
# on Redis's clock. The key ends with its newest mark, so that it exists as long as anybody holds it.
# ARGV: the holder, how long its mark lasts (ms).
_MARK = """
local now = redis.call('TIME'); now = now[1] * 1000 + math.floor(now[2] / 1000)
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[2], ARGV[1])
  redis.call('ZREMRANGEBYSCORE', key, 0, now)
  redis.call('PEXPIREAT', key, redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
end
"""
_UNMARK = """
for _, key in ipairs(KEYS) do
  if redis.call('ZREM', key, ARGV[1]) == 1 then
    local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
    if newest then redis.call('PEXPIREAT', key, newest) end
  end
end
"""
_EXISTS = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('EXISTS', key) end
return found
"""


class RedisBus:
    """Publishes wake-ups without waiting, hears those of other processes, marks who has a stream."""

    def __init__(self, client: redis.asyncio.Redis, clock: Clock, deployment: str) -> None:
        self.deployment = deployment
        """The id of all processes that share its keys and channels."""
        self._own = f"{_SHARED}{deployment}:"
        self._client = client
        self._clock = clock
        self._queued: deque[tuple[str, str]] = deque(maxlen=_MAX_QUEUED)
        self._is_full = False
        self._to_send = asyncio.Event()
        self._subscribed = asyncio.Event()

    @property
    def listening(self) -> bool:
        """Whether wake-ups of other processes arrive."""
        return self._subscribed.is_set()

    async def until_listening(self) -> None:
        """Return when wake-ups of other processes arrive."""
        await self._subscribed.wait()

    def publish(self, topic: str, message: str) -> None:
        """Queue a wake-up; it is sent soon, or lost when Redis is down (the oldest are dropped first)."""
        if len(self._queued) == _MAX_QUEUED and not self._is_full:
            self._is_full = True
            _log.warning("too many wake-ups wait for redis: the oldest are dropped, and found by looking")
        self._queued.append((topic, message))
        self._to_send.set()

    async def announce(self, topic: str, message: str) -> int:
        """Send a wake-up now: how many listen to it.

        Raises:
            DependencyDown: Redis does not answer.
        """
        with _translated_errors():
            async with asyncio.timeout(_TIMEOUT_S):
                return int(await self._client.publish(self._own + topic, message))

    async def run_publisher(self) -> None:
        """Send what `publish` queued, in pipelines, for ever."""
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            self._is_full = False
            while self._queued:
                batch = [self._queued.popleft() for _ in range(min(_PIPELINE, len(self._queued)))]
                try:
                    pipeline = self._client.pipeline(transaction=False)
                    for topic, message in batch:
                        pipeline.publish(self._own + topic, message)
                    async with asyncio.timeout(_TIMEOUT_S):
                        await pipeline.execute()
                except (RedisError, OSError, TimeoutError):
                    # Wake-ups are only worth something now: what waits for them also polls.
                    self._queued.clear()
                    await self._clock.sleep(_RECONNECT_S)

    async def run_listener(
        self,
        topics: Sequence[str],
        heard: Callable[[str, str], None],
        resumed: Callable[[], None],
    ) -> None:
        """Call `heard(topic, message)` for each wake-up, for ever, and `resumed()` after each (re)connect.

        Pub/sub loses what is sent while the connection is down, so whoever listens looks for itself on `resumed`.
        """
        while True:
            try:
                await self._listen(topics, heard, resumed)
            except (RedisError, OSError, TimeoutError) as error:
                if self.listening:
                    _log.warning("redis subscription lost", extra={"error": type(error).__name__})
            self._subscribed.clear()
            await self._clock.sleep(_RECONNECT_S)

    async def _listen(
        self, topics: Sequence[str], heard: Callable[[str, str], None], resumed: Callable[[], None]
    ) -> None:
        subscription = self._client.pubsub()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await subscription.subscribe(*(self._own + topic for topic in topics))
            self._subscribed.set()
            resumed()
            pinged = False
            while True:
                message = await subscription.get_message(timeout=_PING_S)
                if message is None:
                    if pinged:
                        raise TimeoutError("no answer to a ping")
                    async with asyncio.timeout(_TIMEOUT_S):
                        await subscription.ping()
                elif message["type"] == "message":
                    heard(_text(message["channel"]).removeprefix(self._own), _text(message["data"]))
                pinged = message is None
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    async def mark_present(self, keys: Iterable[str], holder: str, seconds: float) -> None:
        """Say that these keys are held by `holder` for the next `seconds`, whoever else holds them.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._for_all(_MARK, list(keys), holder, int(seconds * 1000))

    async def mark_absent(self, keys: Iterable[str], holder: str) -> None:
        """Say that `holder` holds these keys no more; the marks of others stay.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._for_all(_UNMARK, list(keys), holder)

    async def present(self, keys: Sequence[str]) -> list[bool]:
        """For each key whether it is there, as one is that anybody holds.

        Raises:
            DependencyDown: Redis does not answer.
        """
        return [found == 1 for found in await self._for_all(_EXISTS, keys)]

    async def forget(self, prefix: str) -> int:
        """Delete the keys that begin with `prefix`, in batches that block nobody; how many.

        Raises:
            DependencyDown: Redis does not answer.
        """
        gone, cursor = 0, 0
        while True:
            with _translated_errors():
                async with asyncio.timeout(_TIMEOUT_S):
                    cursor, keys = await self._client.scan(cursor, match=f"{self._own}{prefix}*", count=_PIPELINE)
                    gone += await self._client.unlink(*keys) if keys else 0
            if not cursor:
                return gone

    async def run_script(self, script: str, key: str, *arguments: float) -> list[bytes]:
        """What a Lua script answers for one key, which all deployments share.

        Raises:
            DependencyDown: Redis does not answer.
        """
        with _translated_errors():
            async with asyncio.timeout(_TIMEOUT_S):
                return list(await self._client.eval(script, 1, _SHARED + key, *arguments))

    async def read(self, key: str) -> bytes | None:
        """The value of a key, or None.

        Raises:
            DependencyDown: Redis does not answer.
        """
        with _translated_errors():
            async with asyncio.timeout(_TIMEOUT_S):
                value = await self._client.get(self._own + key)
        return value.encode() if isinstance(value, str) else value

    async def write(self, values: Mapping[str, bytes], seconds: float) -> None:
        """Keep values for `seconds`.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._pipelined(
            lambda pipe, key: pipe.set(self._own + key, values[key], px=int(seconds * 1000)), list(values)
        )

    async def tally(
        self, counts: Mapping[str, Mapping[int, int]], read: Sequence[str], seconds: float
    ) -> list[dict[int, int]]:
        """Add to counters that all processes share, in one round trip, and read some: each key has several, by number.

        A key that was added to is kept for `seconds`.

        Raises:
            DependencyDown: Redis does not answer, or somebody else wrote there; whether it has counted is not known.
        """
        with _translated_errors():
            pipeline = self._client.pipeline(transaction=False)
            for key, fields in counts.items():
                for field, count in fields.items():
                    pipeline.hincrby(self._own + key, str(field), count)
                pipeline.pexpire(self._own + key, int(seconds * 1000))
            for key in read:
                pipeline.hgetall(self._own + key)
            async with asyncio.timeout(_TIMEOUT_S):
                answers = await pipeline.execute()
        tables = answers[len(answers) - len(read) :]
        try:
            return [{int(field): int(count) for field, count in table.items()} for table in tables]
        except ValueError as error:
            raise DependencyDown("redis holds counters that are not ours") from error

    async def _for_all(self, script: str, keys: Sequence[str], *arguments: float | str) -> list[int]:
        """What a script answers for keys of this deployment, so many in a call that it holds up nobody else."""
        answers: list[int] = []
        for start in range(0, len(keys), _PIPELINE):
            names = [self._own + key for key in keys[start : start + _PIPELINE]]
            with _translated_errors():
                async with asyncio.timeout(_TIMEOUT_S):
                    answers += await self._client.eval(script, len(names), *names, *arguments) or ()
        return answers

    async def _pipelined(
        self, command: Callable[[redis.asyncio.client.Pipeline, str], object], keys: Sequence[str]
    ) -> None:
        with _translated_errors():
            for start in range(0, len(keys), _PIPELINE):
                pipeline = self._client.pipeline(transaction=False)
                for key in keys[start : start + _PIPELINE]:
                    command(pipeline, key)
                async with asyncio.timeout(_TIMEOUT_S):
                    await pipeline.execute()


def _text(value: bytes) -> str:
    # Whatever else is published on our channels must not end the listener.
    return value.decode(errors="replace")


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise DependencyDown("redis does not answer") from error


@asynccontextmanager
async def open_redis(url: str, clock: Clock, deployment: str = "") -> AsyncIterator[RedisBus]:
    """The bus of a deployment for the block. Redis need not be up: the bus connects when it can."""
    # No socket_timeout: redis-py would wait for its writes with asyncio.wait_for, which before Python 3.12 forgets a
    # cancellation that comes while the write is done already (CPython issue 86296). Each call has a timeout of ours.
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=None, socket_connect_timeout=_TIMEOUT_S, retry=None, health_check_interval=0
    )
    try:
        yield RedisBus(client, clock, deployment)
    finally:
        await client.aclose()
