"""Statuses of processes, as small and as large as they come."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def process_status(name: str = "host:1", *, at: datetime = NOW, methods: int = 2, breakers: int = 2) -> ProcessStatus:
    """Return the status of a process that serves, with so many methods and breakers."""
    return ProcessStatus(
        key=f"{name[:100]}:0123456789abcdef",
        name=name,
        role="rpc",
        started_at=at - timedelta(minutes=5),
        written_at=at,
        build=BuildStatus("0.1.0", "abc123", "3.11.14", "1.85.1"),
        window_s=300.0,
        methods=tuple(
            MethodStatus(
                f"syncbeat.v1.SyncService/Method{number:02}", 100 + number, 1, 12.345678901234567, 0.001234, 0.0123, 0.1
            )
            for number in range(methods)
        ),
        pool=PoolStatus(8, 3, 1, 0, 0.0015),
        breakers=tuple(
            BreakerStatus(
                f"push:app-{number:02}", BreakerState.OPEN if number == 1 else BreakerState.CLOSED, number, at
            )
            for number in range(breakers)
        ),
        caches=(CacheStatus("tokens", 10, 90, 10, 0), CacheStatus("views", 5, 0, 0, 0)),
        limits=LimitStatus(True, 4, 2, 0),
        streams=StreamStatus(7, 1.5),
    )


def largest_status() -> ProcessStatus:
    """Return a status with as much in it as one may have."""
    full = process_status("h" * 120, methods=MOST_METHODS, breakers=MOST_BREAKERS)
    assert len(full.caches) <= MOST_CACHES
    return full
