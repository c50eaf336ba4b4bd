"""Chooses the breakers of a process that are told where there are too many: one for each app and webhook host."""

from __future__ import annotations

from collections.abc import Iterable

from syncbeat_server.status.model import MOST_BREAKERS, BreakerState, BreakerStatus

_STORES = frozenset({"postgres", "redis"})


def shown_breakers(found: Iterable[BreakerStatus]) -> tuple[BreakerStatus, ...]:
    """Return 20 at most, by name: those of the stores, then those that are not closed, before others."""
    chosen = sorted(found, key=lambda one: (one.name not in _STORES, one.state is BreakerState.CLOSED, one.name))
    return tuple(sorted(chosen[:MOST_BREAKERS], key=lambda one: one.name))
