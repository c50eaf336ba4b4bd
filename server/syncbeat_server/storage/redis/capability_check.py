"""Tries on Redis every use that the service makes of it, under names of its own, and reports the refusals."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import redis.asyncio

from syncbeat_server.storage.redis.address import RedisAddress
from syncbeat_server.storage.redis.bus import FAILURES, SHARED
from syncbeat_server.storage.redis.failure_causes import ACL_RULE, VAGUE, Cause, NoPrimary, cause_of, command_of
from syncbeat_server.storage.redis.outage_log import Refusal
from syncbeat_server.storage.redis.presence_scripts import EXISTS, MARK, UNMARK
from syncbeat_server.storage.redis.process_records import FORGET, READ, WRITE
from syncbeat_server.storage.redis.shared_rates import CHARGE, COUNT, SETTLE
from syncbeat_server.storage.redis.token_bucket import ACQUIRE

_STEP_S = 1.0
_CONNECTIONS = 2
_KEPT_MS = 10_000
_READ = 64
_MAX_NAMES = 8
# Causes that may concern one command alone; any other cause concerns all commands.
_SINGLE = frozenset({Cause.NOT_PERMITTED, Cause.UNKNOWN_COMMAND, Cause.FULL, Cause.FOREIGN, Cause.OTHER})

_Step = Callable[[redis.asyncio.Redis, str], Awaitable[object]]


@asynccontextmanager
async def fresh_client(address: RedisAddress) -> AsyncIterator[redis.asyncio.Redis]:
    """Open a client with new connections for the block, which lead where the address leads now."""
    client = address.client(_CONNECTIONS, _STEP_S)
    try:
        yield client
    finally:
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(_STEP_S):
                await client.aclose()


async def check_capabilities(client: redis.asyncio.Redis, address: RedisAddress, own: str) -> list[Refusal]:
    """Try each use of keys and scripts and a PUBLISH, under names that begin with `own`, and return the refusals."""
    key, found = f"{own}check:{secrets.token_hex(8)}", list[Refusal]()
    for use, step in _STEPS.items():
        refusal = await _refusal(use, step, client, key)
        if refusal is None:
            continue
        if refusal.cause not in _SINGLE or refusal.cause is Cause.UNKNOWN_COMMAND:
            refusal = await _diagnose(refusal, address, key)
        found.append(refusal)
        if refusal.cause not in _SINGLE:
            break
    return found


async def describe_refusals(address: RedisAddress, deployment: str) -> list[str]:
    """Try every use, including the arrival of a wake-up, and return a sentence for each one that is refused."""
    own = f"{SHARED}{deployment}:"
    async with fresh_client(address) as client:
        found = await check_capabilities(client, address, own)
        if all(one.cause in _SINGLE for one in found):
            refusal = await _refusal("SUBSCRIBE", _receive, client, f"{own}check:{secrets.token_hex(8)}")
            found += [] if refusal is None or any(one.use == "PUBLISH" for one in found) else [refusal]
    denied = [one for one in found if one.cause is Cause.NOT_PERMITTED]
    sentences = [f"redis: {one.use}: {one.fix}" for one in found if one not in denied]
    if denied:
        uses = ", ".join(f"{one.use} ({one.command})" if one.command else one.use for one in denied)
        sentences.append(f"redis: the user lacks rights for {uses}; grant: ACL SETUSER <user> {ACL_RULE}")
    return sentences


async def _set(client: redis.asyncio.Redis, key: str) -> object:
    return await client.set(key, b"1", px=_KEPT_MS)


async def _get(client: redis.asyncio.Redis, key: str) -> object:
    return await client.get(key)


async def _count(client: redis.asyncio.Redis, key: str) -> object:
    pipeline = client.pipeline(transaction=False)
    pipeline.hincrby(f"{key}:counts", "1", 1)
    pipeline.pexpire(f"{key}:counts", _KEPT_MS)
    pipeline.hgetall(f"{key}:counts")
    return await pipeline.execute()


async def _mark(client: redis.asyncio.Redis, key: str) -> object:
    # Two keys: a Cluster runs no script on keys of two slots, even if one server has all slots.
    keys = (f"{key}:one", f"{key}:two")
    await client.eval(MARK, len(keys), *keys, "check", _KEPT_MS)
    await client.eval(EXISTS, len(keys), *keys)
    return await client.eval(UNMARK, len(keys), *keys, "check")


async def _acquire(client: redis.asyncio.Redis, key: str) -> object:
    return await client.eval(ACQUIRE, 1, f"{key}:rate", 1, 1, 0, 1, 1)


async def _limit(client: redis.asyncio.Redis, key: str) -> object:
    await client.eval(COUNT, 1, f"{key}:processes", "check", _KEPT_MS / 1000)
    await client.eval(CHARGE, 0, f"{key}:", "limit\t1 1 2 1")
    return await client.eval(SETTLE, 2, f"{key}:limit", f"{key}:another", "1 1 2 0 1 1 0", "1 1 2 0 1 1 0")


async def _list_processes(client: redis.asyncio.Redis, key: str) -> object:
    names, prefix = f"{key}:names", f"{key}:process:"
    await client.eval(WRITE, 2, names, f"{prefix}check", "check", "{}", _KEPT_MS, prefix, 1)
    await client.eval(READ, 1, names, prefix, 1)
    return await client.eval(FORGET, 2, names, f"{prefix}check", "check")


async def _forget(client: redis.asyncio.Redis, key: str) -> object:
    await client.scan(0, match=f"{key}*", count=1)
    return await client.unlink(key)


async def _publish(client: redis.asyncio.Redis, key: str) -> object:
    return int(await client.publish(key, "check"))


async def _receive(client: redis.asyncio.Redis, key: str) -> object:
    subscription = client.pubsub()
    try:
        await subscription.subscribe(key)
        while (message := await subscription.get_message(timeout=_STEP_S)) is None or message["type"] != "subscribe":
            pass
        await client.publish(key, "check")
        while (message := await subscription.get_message(timeout=_STEP_S)) is None or message["type"] != "message":
            pass
        return message
    finally:
        with contextlib.suppress(*FAILURES):
            await subscription.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped


_STEPS: dict[str, _Step] = {
    "SET with an expiry": _set,
    "GET": _get,
    "counters in hashes": _count,
    "scripts that mark streams": _mark,
    "scripts that share rates": _acquire,
    "scripts that share limits": _limit,
    "scripts that list processes": _list_processes,
    "SCAN and UNLINK, for new epochs": _forget,
    "PUBLISH": _publish,
}


async def _refusal(use: str, step: _Step, client: redis.asyncio.Redis, key: str) -> Refusal | None:
    try:
        async with asyncio.timeout(_STEP_S):
            await step(client, key)
    except FAILURES as error:
        return refusal_of(use, error)
    return None


def refusal_of(use: str, error: BaseException) -> Refusal:
    """Return the refusal of a use that an error means."""
    sentence = error.__cause__.sentence if isinstance(error.__cause__, NoPrimary) else None
    return Refusal(cause_of(error), use, command_of(error), sentence)


async def _diagnose(refusal: Refusal, address: RedisAddress, key: str) -> Refusal:
    """Return the refusal with the cause behind it, if a closer look finds one."""
    if refusal.cause in (Cause.UNKNOWN_COMMAND, Cause.NO_SUCH_DATABASE):
        # Neither a Sentinel nor a Cluster has numbered databases.
        bare = replace(address, kwargs={name: value for name, value in address.kwargs.items() if name != "db"})
        async with fresh_client(bare) as client:
            if names := await _sentinel_primaries(client):
                return replace(refusal, cause=Cause.SENTINEL, sentence=_sentinel_sentence(names))
            again = await _refusal(refusal.use, _mark, client, key)
        return replace(refusal, cause=Cause.CLUSTER) if again and again.cause is Cause.CLUSTER else refusal
    if refusal.cause in VAGUE or refusal.cause is Cause.NO_PRIMARY:
        endpoint = address.endpoint or (address.sentinels[0] if address.sentinels else None)
        cause = None if endpoint is None else await _probe_protocol(*endpoint, is_tls=address.is_tls)
        if cause is not None:
            return replace(refusal, cause=cause, sentence=None)
    return refusal


async def _sentinel_primaries(client: redis.asyncio.Redis) -> list[str]:
    try:
        async with asyncio.timeout(_STEP_S):
            kind, names, *_ = await client.execute_command("ROLE")  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        return [str(name, "utf-8", "replace") for name in names] or ["..."] if kind == b"sentinel" else []
    except FAILURES:
        return []


def _sentinel_sentence(names: list[str]) -> str:
    return (
        f"it is a Sentinel, which knows {', '.join(map(repr, names[:_MAX_NAMES]))}: write "
        f"redis+sentinel://host:26379/{names[0]}"
    )


async def _probe_protocol(host: str, port: int, *, is_tls: bool) -> Cause | None:
    """Return the cause that a server's answer to a plain PING shows, or that a TLS handshake does."""
    answer = await _exchange(host, port, None)
    if answer is None:
        return None
    if is_tls:
        return Cause.TLS_UNKNOWN if answer[:1] in (b"+", b"-") else None
    if answer.startswith(b"-DENIED"):
        return Cause.PROTECTED
    if b"number of clients" in answer:
        return Cause.MAX_CLIENTS
    if answer[:1] in (b"+", b"-"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # no secret is sent: only the presence of TLS matters
    context.verify_mode = ssl.CERT_NONE
    return Cause.TLS_WANTED if await _exchange(host, port, context) is not None else None


async def _exchange(host: str, port: int, context: ssl.SSLContext | None) -> bytes | None:
    """Return the answer to a PING: empty if there is none in time, None if no connection is established."""
    try:
        async with asyncio.timeout(_STEP_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError, ValueError):
        return None
    try:
        async with asyncio.timeout(_STEP_S):
            writer.write(b"PING\r\n")
            return await reader.read(_READ)
    except (OSError, TimeoutError):
        return b""
    finally:
        writer.close()
