"""Cuts a log into days to measure, each with the days before it as history: nothing of a day is known before its time.

A device polls from its first line in the history on, or from that on the day itself; one that has had no line in the
days of history counts as gone. It lists its scopes when it comes, so that what changed until then was not late.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from syncbeat_devtools.simulate.fleet.devices import DAY, Device
from syncbeat_devtools.simulate.fleet.log_lines import CHANGE, FOREGROUND, MIN_SPAN_S, Line, LogFormat, read_lines
from syncbeat_server.errors import ConfigurationError


class DayKey(NamedTuple):
    """Names a day of a log: it begins at `start` (unix seconds), and is played after so many days of history."""

    path: Path
    form: LogFormat
    start: float
    history_days: int


class ScopeFeed(NamedTuple):
    """Holds the changes of a scope, history included, with their writers. Seconds of the day, below 0 for history."""

    scope: str
    born: float
    changes: tuple[float, ...]
    writers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogDay:
    """Holds a day of a log: its devices, and all scopes."""

    key: DayKey
    devices: tuple[Device, ...]
    scopes: tuple[ScopeFeed, ...]
    names: tuple[str, ...]
    """The devices' names, by their index."""
    follows: tuple[tuple[tuple[int, float], ...], ...]
    """For each device the scopes that it follows, by their index, and since when."""
    active: dict[str, tuple[float, ...]]
    """The moments in which a device's user was active, history included."""


@lru_cache(maxsize=2)
def log_lines(path: Path, form: LogFormat) -> tuple[Line, ...]:
    """Return the lines of a log, read once."""
    return read_lines(path, form)


def last_days(lines: Sequence[Line], count: int) -> tuple[float, ...]:
    """Return the starts of the last whole days of a log, counted from its first line; an unfinished last one is left.

    Raises:
        ConfigurationError: the log has fewer.
    """
    first, last = lines[0].at, lines[-1].at
    whole = int((last - first) // DAY)
    if (last - first) - whole * DAY >= MIN_SPAN_S:
        whole += 1
    if whole < count:
        raise ConfigurationError(f"--measure-days: the log has {whole} whole days")
    return tuple(first + index * DAY for index in range(whole - count, whole))


@lru_cache(maxsize=40)
def log_day(key: DayKey) -> LogDay:
    """Return a day of a log.

    Raises:
        ConfigurationError: no device has a change to see on it.
    """
    lines = _window(key)
    feeds: dict[str, list[tuple[float, str]]] = defaultdict(list)
    born: dict[str, float] = {}
    follows: dict[str, dict[str, float]] = defaultdict(dict)
    joined: dict[str, float] = {}
    active: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        at = line.at - key.start
        born.setdefault(line.scope, at)
        if line.kind == CHANGE:
            feeds[line.scope].append((at, line.device))
        if line.device:
            joined.setdefault(line.device, at)
            follows[line.device].setdefault(line.scope, at)
            if line.kind in (CHANGE, FOREGROUND):
                active[line.device].append(at)
    scopes = tuple(
        ScopeFeed(name, since, tuple(at for at, _ in feeds[name]), tuple(writer for _, writer in feeds[name]))
        for name, since in born.items()
    )
    place = {feed.scope: index for index, feed in enumerate(scopes)}
    names = tuple(sorted(follows))
    followed = tuple(tuple((place[scope], since) for scope, since in follows[name].items()) for name in names)
    devices = tuple(
        _device(index, name, [(scopes[number], since) for number, since in followed[index]], joined[name], key)
        for index, name in enumerate(names)
    )
    moments = {name: tuple(found) for name, found in active.items()}
    return LogDay(key, devices, scopes, names, followed, moments)


def check_day(key: DayKey) -> None:
    """Raise ConfigurationError if no device has a change to see on this day."""
    if not any(device.changes for device in log_day(key).devices):
        raise ConfigurationError(
            f"--trace {key.path}: no device has a change to see: a device follows the scopes of its lines"
        )


def _window(key: DayKey) -> Sequence[Line]:
    lines = log_lines(key.path, key.form)
    at = attrgetter("at")
    return lines[
        bisect_left(lines, key.start - key.history_days * DAY, key=at) : bisect_left(lines, key.start + DAY, key=at)
    ]


def _device(index: int, name: str, followed: Sequence[tuple[ScopeFeed, float]], joined: float, key: DayKey) -> Device:
    seen = sorted(
        at
        for feed, since in followed
        for at, writer in zip(feed.changes, feed.writers, strict=True)
        if writer != name and at >= since and at > joined
    )
    today = bisect_left(seen, 0.0)
    return Device(index, tuple(seen[today:]), born=joined, history=tuple(seen[:today]))
