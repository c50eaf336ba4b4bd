"""Runs the commands of Redis: wake-ups between processes, marks of live streams, counters. Losing it loses no data.

The names of keys and channels are completed here, and nowhere else: they begin with the deployment's id, so that
deployments which share a Redis do not hear each other. `run_script` alone takes whole names, of `SHARED` keys too.

Callers wait for Redis in two places: the delivery worker calls `present` once a batch, and calls near their limits ask
for a share of them (`shared_rates.py`). Failures are reported to
`health`, which classifies them; `failover_monitor.py` checks further and makes the connections follow a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.resilience.probed_breaker import ProbedBreaker
from syncbeat_server.storage.redis.address import RedisAddress, parse_redis_url
from syncbeat_server.storage.redis.failure_causes import AWAY, MOVED, cause_of
from syncbeat_server.storage.redis.outage_log import RedisHealth
from syncbeat_server.storage.redis.presence_scripts import EXISTS, MARK, UNMARK
from syncbeat_server.storage.redis.script_answers import NO_ANSWER
from syncbeat_server.storage.redis.time_limits import DEFAULT_TIMINGS, RedisTimings

_log = logging.getLogger(__name__)

FAILURES = (RedisError, OSError, TimeoutError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""The exceptions of redis-py, with those for answers that no Redis gives and for a connection closed during a call:
RuntimeError is uvloop's for one that was reset a moment before something is sent."""
SHARED = "syncbeat:"
"""The prefix of all names."""
_CALLS = 32  # at once; further ones wait for a connection, within their timeout
MAX_QUEUED = 10_000
_PIPELINE = 500
_DROP_EVERY_S = 1.0


class RedisBus:
    """Publishes wake-ups without waiting, listens to those of other processes, and keeps shared marks and counters."""

    def __init__(
        self, address: RedisAddress, clock: Clock, deployment: str, timings: RedisTimings = DEFAULT_TIMINGS
    ) -> None:
        self.deployment = deployment
        """The id that all processes with the same keys and channels share."""
        self.own = f"{SHARED}{deployment}:"
        """The prefix of the deployment's keys and channels."""
        self.address = address
        self.timings = timings
        self.health = RedisHealth(clock)
        # The subscription has a client of its own: replacing the connections of calls must not interrupt it.
        self._client = address.client(_CALLS, timings.call_s)
        self.breaker = ProbedBreaker("redis", self._ping, timings.call_s, clock)
        """Open while Redis is away: a call fails at once."""
        self._subscriber = address.client(1, timings.call_s)
        self._call_slots = asyncio.Semaphore(_CALLS)
        self._dropped_at = clock.monotonic() - _DROP_EVERY_S
        self._listening_timeout: asyncio.Timeout | None = None
        self._probe_topic = f"beats:{secrets.token_hex(8)}"
        self._probes: dict[str, asyncio.Event] = {}
        self._clock = clock
        self._queued: deque[tuple[str, str]] = deque(maxlen=MAX_QUEUED)
        self._is_full = False
        self._to_send = asyncio.Event()
        self._subscribed = asyncio.Event()

    @property
    def listening(self) -> bool:
        """Return True while wake-ups of other processes arrive."""
        return self._subscribed.is_set()

    async def until_listening(self) -> None:
        """Wait until wake-ups of other processes arrive."""
        await self._subscribed.wait()

    def publish(self, topic: str, message: str) -> None:
        """Queue a wake-up, to be sent soon. It is lost if Redis is down; a full queue drops the oldest first."""
        if len(self._queued) == MAX_QUEUED and not self._is_full:
            self._is_full = True
            _log.warning("too many wake-ups wait for redis: the oldest are dropped, and found by looking")
        self._queued.append((topic, message))
        self._to_send.set()

    async def announce(self, topic: str, message: str) -> int:
        """Send a wake-up now and return how many subscribers it reached.

        Raises:
            DependencyDown: Redis does not answer.
        """
        async with self._call():
            return int(await self._client.publish(self.own + topic, message))

    async def run_publisher(self) -> None:
        """Send the queued wake-ups, in pipelines, for ever."""
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
                    # A late wake-up is worth nothing: its receivers also poll.
                    self._queued.clear()
                    await self._clock.sleep(self.timings.pause_s(failures))
                    failures += 1

    async def run_listener(
        self,
        topics: Sequence[str],
        on_message: Callable[[str, str], None],
        on_connect: Callable[[], None],
    ) -> None:
        """Call `on_message(topic, message)` for each wake-up, for ever, and `on_connect()` after each (re)connect.

        Pub/sub loses messages while the connection is down, so a listener must read the database on `on_connect`.
        """
        failures = 0
        while True:
            try:
                await self._listen(topics, on_message, on_connect)
            except FAILURES as error:
                self.health.record_failure(error)
            failures = 0 if self.listening else failures + 1
            self._subscribed.clear()
            await self._clock.sleep(self.timings.pause_s(failures))

    async def _listen(
        self, topics: Sequence[str], on_message: Callable[[str, str], None], on_connect: Callable[[], None]
    ) -> None:
        subscription = self._subscriber.pubsub()
        try:
            async with asyncio.timeout(None) as self._listening_timeout:
                await self._subscribe(subscription, [*topics, self._probe_topic])
                self._subscribed.set()
                on_connect()
                await self._receive(subscription, on_message)
        except TimeoutError:
            if self._listening_timeout is None or not self._listening_timeout.expired():
                raise
        finally:
            self._listening_timeout = None
            with contextlib.suppress(*FAILURES):
                await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    async def _subscribe(self, subscription: redis.asyncio.client.PubSub, topics: Sequence[str]) -> None:
        """Subscribe, and wait until Redis has confirmed each channel; a refusal is raised in place of that."""
        async with asyncio.timeout(self.timings.call_s):
            await subscription.subscribe(*(self.own + topic for topic in topics))
            confirmed = 0
            while confirmed < len(topics):
                message = await subscription.get_message(timeout=self.timings.call_s)
                # Messages that arrive already may be dropped: listeners read the database on `on_connect`.
                confirmed += message is not None and message["type"] == "subscribe"

    async def _receive(self, subscription: redis.asyncio.client.PubSub, on_message: Callable[[str, str], None]) -> None:
        pinged = False
        while True:
            try:
                message = await subscription.get_message(timeout=self.timings.ping_s)
            except ResponseError as error:
                # An answer to the ping: a server that refuses writes may refuse pings too, and still sends messages.
                self.health.record_failure(error)
                message = {"type": "refused"}
            if message is None:
                if pinged:
                    raise TimeoutError("no answer to a ping")
                async with asyncio.timeout(self.timings.call_s):
                    await subscription.ping()
            elif message["type"] == "message":
                topic, text = _text(message["channel"]).removeprefix(self.own), _text(message["data"])
                if topic != self._probe_topic:
                    on_message(topic, text)
                elif text in self._probes:
                    self._probes[text].set()
            pinged = message is None

    async def check_round_trip(self, other: redis.asyncio.Redis) -> bool:
        """Check that messages sent by `other` and by our connections reach our subscription, and that a write works.

        Waits until they do; returns False if the subscription was lost meanwhile.

        Raises:
            Exception: one of FAILURES.
        """
        probes = {secrets.token_hex(4): asyncio.Event() for _ in range(2)}
        self._probes |= probes
        try:
            for client, probe in zip((other, self._client), probes, strict=True):
                await client.publish(self.own + self._probe_topic, probe)
            # A former primary is a replica, which accepts a PUBLISH and passes it on to nobody.
            await self._client.set(f"{self.own}{self._probe_topic}", b"1", px=int(self.timings.call_s * 1000))
            for arrived in probes.values():
                await arrived.wait()
            return self.listening
        finally:
            for probe in probes:
                del self._probes[probe]

    async def reconnect(self) -> None:
        """Replace all connections, the subscription's too: they may lead to a former primary."""
        if self._listening_timeout is not None and self.listening:
            self._subscribed.clear()
            self._listening_timeout.reschedule(asyncio.get_running_loop().time())
        await self._drop_connections()

    async def _drop_connections(self) -> None:
        self._dropped_at = self._clock.monotonic()
        pool = self._client.connection_pool
        with contextlib.suppress(*FAILURES):
            await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            await pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        """Close all connections."""
        await self.breaker.close()
        for client in (self._client, self._subscriber):
            await _close(client)

    async def mark_present(self, keys: Iterable[str], holder: str, seconds: float) -> None:
        """Mark keys as held by `holder` for the next `seconds`, beside other holders.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self.run_on_keys(MARK, list(keys), holder, int(seconds * 1000))

    async def mark_absent(self, keys: Iterable[str], holder: str) -> None:
        """Remove the marks of `holder` from keys; those of other holders stay.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self.run_on_keys(UNMARK, list(keys), holder)

    async def present(self, keys: Sequence[str]) -> list[bool]:
        """Return for each key True if it exists: for marked keys, if it has a holder.

        Raises:
            DependencyDown: Redis does not answer.
        """
        return [found == 1 for found in await self.run_on_keys(EXISTS, keys)]

    async def run_script(self, script: str, keys: Sequence[str], *arguments: float | str) -> list[bytes]:
        """Run a Lua script on keys with their whole names, which begin with `own` or `SHARED`; return its answer.

        Raises:
            DependencyDown: Redis does not answer.
        """
        async with self._call():
            return list(await self._client.eval(script, len(keys), *keys, *arguments))

    async def read(self, key: str) -> bytes | None:
        """Return the value of a key, or None.

        Raises:
            DependencyDown: Redis does not answer.
        """
        async with self._call():
            value = await self._client.get(self.own + key)
        return value.encode() if isinstance(value, str) else value

    async def forget(self, prefix: str) -> int:
        """Delete the keys that begin with `prefix`, in batches that block nobody; return how many.

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
        """Write values that expire after `seconds`.

        Raises:
            DependencyDown: Redis does not answer.
        """
        await self._pipelined(
            lambda pipe, key: pipe.set(self.own + key, values[key], px=int(seconds * 1000)), list(values)
        )

    async def tally(
        self, counts: Mapping[str, Mapping[int, int]], read: Sequence[str], seconds: float
    ) -> list[dict[int, int]]:
        """Add to shared counters and read some, in one round trip; each key has several counters, by number.

        A key that was added to expires after `seconds`.

        Raises:
            DependencyDown: Redis does not answer, or another program wrote to a key; the counts may have been added.
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

    async def run_on_keys(self, script: str, keys: Sequence[str], *arguments: float | str) -> list[int]:
        """Run a Lua script on keys of this deployment, 500 at a time to delay nobody, and return its answers.

        Raises:
            DependencyDown: Redis does not answer.
        """
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
        """Bound one round trip in time; count a failure by its cause, and raise it as DependencyDown."""
        self.breaker.require_closed(NO_ANSWER)
        try:
            async with asyncio.timeout(self.timings.call_s), self._call_slots:
                yield
        except FAILURES as error:
            cause = self.health.record_failure(error)
            if cause in AWAY:
                self.breaker.suspect()
            if cause in MOVED and self._clock.monotonic() - self._dropped_at >= _DROP_EVERY_S:
                await self._drop_connections()
            raise DependencyDown(NO_ANSWER) from error

    async def _ping(self) -> bool:
        """Tell if Redis answers on a new connection, be it with a refusal."""
        client = self.address.client(1, self.timings.call_s)
        try:
            await client.ping()
        except FAILURES as error:
            return cause_of(error) not in AWAY
        finally:
            await _close(client)
        return True


async def _close(client: redis.asyncio.Redis) -> None:
    with contextlib.suppress(*FAILURES):
        await client.aclose()


def _text(value: bytes) -> str:
    # Whatever other programs publish on our channels must not end the listener.
    return value.decode(errors="replace")


@asynccontextmanager
async def open_redis(
    url: str, clock: Clock, deployment: str = "", timings: RedisTimings = DEFAULT_TIMINGS
) -> AsyncIterator[RedisBus]:
    """Open the bus of a deployment for the block. Redis may be down: the bus connects when it can.

    Raises:
        ConfigurationError: the URL cannot be used.
    """
    bus = RedisBus(parse_redis_url(url), clock, deployment, timings)
    try:
        yield bus
    finally:
        await bus.close()
