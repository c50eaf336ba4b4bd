"""Redis: wake-ups between processes and who has a live stream. It makes things fast; losing it loses no data.

The names of keys and channels are completed here, and nowhere else: they begin with the deployment's id, so that those
which use one Redis do not hear each other. Only the keys of `run_script` are everybody's (ADR 64).

Nothing here is awaited on a caller's path but `present`, which the delivery worker asks once a batch. What fails is
told to `health`, which says why; `storage/redis_watch` looks further and has the connections follow a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.redis.address import RedisAddress, address_of
from syncbeat_server.storage.redis.faults import MOVED
from syncbeat_server.storage.redis.health import RedisHealth

_log = logging.getLogger(__name__)

FAILURES = (RedisError, OSError, TimeoutError, ValueError, TypeError, LookupError, AttributeError)
"""What redis-py raises: also for answers that Redis would not give, and for a connection that is closed under it."""
SHARED = "syncbeat:"
"""What all names begin with."""
_TIMEOUT_S = 1.0
# More calls at once wait for a connection, within their time.
_CALLS = 32
_MAX_QUEUED = 10_000
_PIPELINE = 500
_RECONNECT_S = 0.5
_RECONNECT_MOST_S = 4.0  # so that a failover is followed in seconds
_DROP_EVERY_S = 1.0
_PING_S = 5.0

# Who holds a key, each until a moment of its own: a sorted set of holders by the millisecond at which their marks end,
# on Redis's clock. The key ends with its newest mark, so that it exists as long as anybody holds it.
# ARGV: the holder, how long its mark lasts (ms).
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


class RedisBus:
    """Publishes wake-ups without waiting, hears those of other processes, marks who has a stream."""

    def __init__(self, address: RedisAddress, clock: Clock, deployment: str) -> None:
        self.deployment = deployment
        """The id of all processes that share its keys and channels."""
        self.own = f"{SHARED}{deployment}:"
        """What the names of the deployment's keys and channels begin with."""
        self.address = address
        self.health = RedisHealth(clock)
        # The subscription's connection is replaced when it says so, and not with those of calls.
        self._client = address.client(_CALLS, _TIMEOUT_S)
        self._ear = address.client(1, _TIMEOUT_S)
        self._room = asyncio.Semaphore(_CALLS)
        self._dropped_at = clock.monotonic() - _DROP_EVERY_S
        self._listens_until: asyncio.Timeout | None = None
        self._beats = f"beats:{secrets.token_hex(8)}"
        self._awaited: dict[str, asyncio.Event] = {}
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
        async with self._call():
            return int(await self._client.publish(self.own + topic, message))

    async def run_publisher(self) -> None:
        """Send what `publish` queued, in pipelines, for ever."""
        failures = 0
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            self._is_full = False
            while self._queued:
                batch = [self._queued.popleft() for _ in range(min(_PIPELINE, len(self._queued)))]
                try:
                    async with self._call():
                        pipeline = self._client.pipeline(transaction=False)
                        for topic, message in batch:
                            pipeline.publish(self.own + topic, message)
                        await pipeline.execute()
                    failures = 0
                except DependencyDown:
                    # Wake-ups are only worth something now: what waits for them also polls.
                    self._queued.clear()
                    await self._clock.sleep(_pause(failures))
                    failures += 1

    async def run_listener(
        self,
        topics: Sequence[str],
        heard: Callable[[str, str], None],
        resumed: Callable[[], None],
    ) -> None:
        """Call `heard(topic, message)` for each wake-up, for ever, and `resumed()` after each (re)connect.

        Pub/sub loses what is sent while the connection is down, so whoever listens looks for itself on `resumed`.
        """
        failures = 0
        while True:
            try:
                await self._listen(topics, heard, resumed)
            except FAILURES as error:
                self.health.failed(error)
            failures = 0 if self.listening else failures + 1
            self._subscribed.clear()
            await self._clock.sleep(_pause(failures))

    async def _listen(
        self, topics: Sequence[str], heard: Callable[[str, str], None], resumed: Callable[[], None]
    ) -> None:
        subscription = self._ear.pubsub()
        try:
            async with asyncio.timeout(None) as self._listens_until:
                await self._subscribe(subscription, [*topics, self._beats])
                self._subscribed.set()
                resumed()
                await self._hear(subscription, heard)
        except TimeoutError:
            if self._listens_until is None or not self._listens_until.expired():
                raise
        finally:
            self._listens_until = None
            with contextlib.suppress(*FAILURES):
                await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    async def _subscribe(self, subscription: redis.asyncio.client.PubSub, topics: Sequence[str]) -> None:
        """Return when Redis has confirmed each channel; what it refuses is told in place of that."""
        async with asyncio.timeout(_TIMEOUT_S):
            await subscription.subscribe(*(self.own + topic for topic in topics))
            confirmed = 0
            while confirmed < len(topics):
                message = await subscription.get_message(timeout=_TIMEOUT_S)
                # What is published already is found by whoever looks on `resumed`.
                confirmed += message is not None and message["type"] == "subscribe"

    async def _hear(self, subscription: redis.asyncio.client.PubSub, heard: Callable[[str, str], None]) -> None:
        pinged = False
        while True:
            try:
                message = await subscription.get_message(timeout=_PING_S)
            except ResponseError as error:
                # An answer to the ping: a server that refuses writes may refuse that too, and sends messages as ever.
                self.health.failed(error)
                message = {"type": "refused"}
            if message is None:
                if pinged:
                    raise TimeoutError("no answer to a ping")
                async with asyncio.timeout(_TIMEOUT_S):
                    await subscription.ping()
            elif message["type"] == "message":
                topic, text = _text(message["channel"]).removeprefix(self.own), _text(message["data"])
                if topic != self._beats:
                    heard(topic, text)
                elif text in self._awaited:
                    self._awaited[text].set()
            pinged = message is None

    async def hears_itself(self, other: redis.asyncio.Redis) -> bool:
        """Return when messages by `other` and by a connection of ours have reached the subscription, and a write of
        ours is taken; False when the subscription was lost meanwhile.

        Raises:
            Exception: one of FAILURES.
        """
        beats = {secrets.token_hex(4): asyncio.Event() for _ in range(2)}
        self._awaited |= beats
        try:
            for client, beat in zip((other, self._client), beats, strict=True):
                await client.publish(self.own + self._beats, beat)
            # A former primary is a replica that takes a PUBLISH and passes it on to nobody.
            await self._client.set(f"{self.own}{self._beats}", b"1", px=int(_TIMEOUT_S * 1000))
            for arrived in beats.values():
                await arrived.wait()
            return self.listening
        finally:
            for beat in beats:
                del self._awaited[beat]

    async def connect_anew(self) -> None:
        """Give up all connections, the subscription's too: they may lead to what is no primary any more."""
        if self._listens_until is not None and self.listening:
            self._subscribed.clear()
            self._listens_until.reschedule(asyncio.get_running_loop().time())
        await self._drop_connections()

    async def _drop_connections(self) -> None:
        self._dropped_at = self._clock.monotonic()
        pool = self._client.connection_pool
        with contextlib.suppress(*FAILURES):
            await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]  # as above
            await pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close all connections."""
        for client in (self._client, self._ear):
            with contextlib.suppress(*FAILURES):
                await client.aclose()

    async def mark_present(self, keys: Iterable[str], holder: str, seconds: float) -> None:
        """Say that these keys are held by `holder` for the next `seconds`, whoever else holds them.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._for_all(MARK, list(keys), holder, int(seconds * 1000))

    async def mark_absent(self, keys: Iterable[str], holder: str) -> None:
        """Say that `holder` holds these keys no more; the marks of others stay.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._for_all(UNMARK, list(keys), holder)

    async def present(self, keys: Sequence[str]) -> list[bool]:
        """For each key whether it is there, as one is that anybody holds.

        Raises:
            DependencyDown: Redis does not answer.
        """
        return [found == 1 for found in await self._for_all(EXISTS, keys)]

    async def run_script(self, script: str, key: str, *arguments: float) -> list[bytes]:
        """What a Lua script answers for one key, which all deployments share.

        Raises:
            DependencyDown: Redis does not answer.
        """
        async with self._call():
            return list(await self._client.eval(script, 1, SHARED + key, *arguments))

    async def read(self, key: str) -> bytes | None:
        """The value of a key, or None.

        Raises:
            DependencyDown: Redis does not answer.
        """
        async with self._call():
            value = await self._client.get(self.own + key)
        return value.encode() if isinstance(value, str) else value

    async def forget(self, prefix: str) -> int:
        """Delete the keys that begin with `prefix`, in batches that block nobody; how many.

        Raises:
            DependencyDown: Redis does not answer.
        """
        gone, cursor = 0, 0
        while True:
            async with self._call():
                cursor, keys = await self._client.scan(cursor, match=f"{self.own}{prefix}*", count=_PIPELINE)
                gone += int(await self._client.unlink(*keys)) if keys else 0
            if not cursor:
                return gone

    async def write(self, values: Mapping[str, bytes], seconds: float) -> None:
        """Keep values for `seconds`.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._pipelined(
            lambda pipe, key: pipe.set(self.own + key, values[key], px=int(seconds * 1000)), list(values)
        )

    async def tally(
        self, counts: Mapping[str, Mapping[int, int]], read: Sequence[str], seconds: float
    ) -> list[dict[int, int]]:
        """Add to counters that all processes share, in one round trip, and read some: each key has several, by number.

        A key that was added to is kept for `seconds`.

        Raises:
            DependencyDown: Redis does not answer, or somebody else wrote there; whether it has counted is not known.
        """
        async with self._call():
            pipeline = self._client.pipeline(transaction=False)
            for key, fields in counts.items():
                for field, count in fields.items():
                    pipeline.hincrby(self.own + key, str(field), count)
                pipeline.pexpire(self.own + key, int(seconds * 1000))
            for key in read:
                pipeline.hgetall(self.own + key)
            answers = await pipeline.execute()
            tables = answers[len(answers) - len(read) :]
            return [{int(field): int(count) for field, count in table.items()} for table in tables]

    async def _for_all(self, script: str, keys: Sequence[str], *arguments: float | str) -> list[int]:
        """What a script answers for keys of this deployment, so many in a call that it holds up nobody else."""
        answers: list[int] = []
        for start in range(0, len(keys), _PIPELINE):
            names = [self.own + key for key in keys[start : start + _PIPELINE]]
            async with self._call():
                answers += await self._client.eval(script, len(names), *names, *arguments) or ()
        return answers

    async def _pipelined(
        self, command: Callable[[redis.asyncio.client.Pipeline, str], object], keys: Sequence[str]
    ) -> None:
        for start in range(0, len(keys), _PIPELINE):
            async with self._call():
                pipeline = self._client.pipeline(transaction=False)
                for key in keys[start : start + _PIPELINE]:
                    command(pipeline, key)
                await pipeline.execute()

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Bound one round trip in time; a failure is counted by its cause, and raised as DependencyDown."""
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._room:
                yield
        except FAILURES as error:
            is_old = self.health.failed(error) in MOVED
            if is_old and self._clock.monotonic() - self._dropped_at >= _DROP_EVERY_S:
                await self._drop_connections()
            raise DependencyDown("redis does not answer as it should") from error


def _text(value: bytes) -> str:
    # Whatever else is published on our channels must not end the listener.
    return value.decode(errors="replace")


def _pause(failures: int) -> float:
    """Draw how long to wait after so many failures in a row, so that processes do not come back together."""
    most = min(_RECONNECT_MOST_S, _RECONNECT_S * 2.0 ** min(failures, 8))
    return random.uniform(most / 2, most)  # noqa: S311  # no secret


@asynccontextmanager
async def open_redis(url: str, clock: Clock, deployment: str = "") -> AsyncIterator[RedisBus]:
    """Open the bus of a deployment for the block. Redis need not be up: the bus connects when it can.

    Raises:
        ConfigurationError: the URL cannot be used.
    """
    bus = RedisBus(address_of(url), clock, deployment)
    try:
        yield bus
    finally:
        await bus.close()
