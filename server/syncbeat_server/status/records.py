"""Spells the status of a process as a bounded JSON text, by which the processes of a deployment know of each other.

Processes of other versions read it too: what one does not know it passes over, and what it cannot read is no status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import orjson

from syncbeat_server.status.model import (
    MOST_BREAKERS,
    MOST_CACHES,
    MOST_METHODS,
    BreakerState,
    BreakerStatus,
    BuildStatus,
    CacheStatus,
    LimitStatus,
    MethodStatus,
    PoolStatus,
    ProcessStatus,
    StreamStatus,
)
from syncbeat_server.status.policy.shown_breakers import shown_breakers

MAX_OCTETS = 16_384
"""Of one record: a hundred of them are read at once. The largest that the contract allows has some 13,000."""
_LONGEST_NAME = 128
_MOST, _MOST_SMALL = 2**53, 2**31 - 1  # what the fields of the contract hold


def encode(status: ProcessStatus) -> str:
    """Return the record of a status; one that is too long loses breakers that are closed, then its rarest methods."""
    status = replace(status, breakers=shown_breakers(status.breakers))
    text = _text(status)
    if len(text) > MAX_OCTETS:
        open_ones = tuple(one for one in status.breakers if one.state is not BreakerState.CLOSED)
        status = replace(status, breakers=open_ones)
        text = _text(status)
    while len(text) > MAX_OCTETS and (status.methods or status.breakers):
        kept = sorted(status.methods, key=lambda one: -one.calls)[: len(status.methods) // 2]
        breakers = status.breakers[: len(status.breakers) // 2]
        status = replace(status, methods=tuple(sorted(kept, key=lambda one: one.method)), breakers=breakers)
        text = _text(status)
    return text.decode()


def decode(text: str | bytes) -> ProcessStatus | None:
    """Return the status of a record; None if it is none that this code can read."""
    if len(text) > MAX_OCTETS:
        return None
    try:
        return _status(orjson.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _text(status: ProcessStatus) -> bytes:
    return orjson.dumps(asdict(status))


def _status(found: Mapping[str, Any]) -> ProcessStatus:
    return ProcessStatus(
        key=_name(found["key"]),
        name=_name(found["name"]),
        role=_name(found["role"]),
        started_at=_moment(found["started_at"]),
        written_at=_moment(found["written_at"]),
        build=BuildStatus(**{name: _name(found["build"][name]) for name in ("version", "revision", "python", "grpc")}),
        window_s=float(found["window_s"]),
        methods=tuple(_method(one) for one in _list(found["methods"], MOST_METHODS)),
        pool=_pool(found["pool"]),
        breakers=tuple(_breaker(one) for one in _list(found["breakers"], MOST_BREAKERS)),
        caches=tuple(_cache(one) for one in _list(found["caches"], MOST_CACHES)),
        limits=None if found["limits"] is None else _limits(found["limits"]),
        streams=StreamStatus(_small(found["streams"]["open"]), float(found["streams"]["signals_per_s"])),
    )


def _method(one: Mapping[str, Any]) -> MethodStatus:
    return MethodStatus(
        method=_name(one["method"]),
        calls=_count(one["calls"]),
        errors=_count(one["errors"]),
        rate=float(one["rate"]),
        p50_s=float(one["p50_s"]),
        p95_s=float(one["p95_s"]),
        p99_s=float(one["p99_s"]),
    )


def _pool(one: Mapping[str, Any]) -> PoolStatus:
    size, connections, in_use, waiters = (_small(one[name]) for name in ("size", "connections", "in_use", "waiters"))
    return PoolStatus(size, connections, in_use, waiters, float(one["acquire_p95_s"]))


def _breaker(one: Mapping[str, Any]) -> BreakerStatus:
    opened_at = None if one["opened_at"] is None else _moment(one["opened_at"])
    return BreakerStatus(_name(one["name"]), BreakerState(one["state"]), _small(one["failures"]), opened_at)


def _cache(one: Mapping[str, Any]) -> CacheStatus:
    counts = (_count(one[name]) for name in ("entries", "hits", "misses", "evictions"))
    return CacheStatus(_name(one["name"]), *counts)


def _limits(one: Mapping[str, Any]) -> LimitStatus:
    counts = (_count(one[name]) for name in ("buckets", "refused", "local_decisions"))
    return LimitStatus(bool(one["shared"]), *counts)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment without a zone")
    return moment


def _count(value: Any, most: int = _MOST) -> int:
    count = int(value)
    if not 0 <= count <= most:
        raise ValueError("a count out of bounds")
    return count


def _small(value: Any) -> int:
    return _count(value, _MOST_SMALL)


def _list(found: Iterable[Any], most: int) -> list[Any]:
    return list(found)[:most]


def _name(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError("a name that is no text")
    return text[:_LONGEST_NAME]
