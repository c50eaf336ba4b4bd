"""Reads a day of a user's own log in place of a generated fleet: CSV with the columns time, scope, device and kind.

`time` is unix seconds or ISO 8601. A line of kind `change` reports a change of the scope; its device is the writer,
which need not be notified, or is empty. Lines of any other kind (`poll`, say) show that the device follows the scope.

The day begins at the earliest line. So a log that covers less than most of that day is refused, and so is one with gaps
that no log has: a mistyped time would select another day.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from syncbeat_devtools.simulate.fleet.devices import DAY, HOUR, Device
from syncbeat_server.errors import ConfigurationError

_MAX_LINES = 5_000_000
_COLUMNS = {"time", "scope", "device", "kind"}
_MIN_SPAN_S, _MAX_SILENCE_S = 20 * HOUR, 7 * DAY
_MAX_UNIX_S = 1e11
"""Unix seconds of the year 5138: larger numbers are milliseconds."""


class Line(NamedTuple):
    """One event of a log, in unix seconds, and its line in the file."""

    number: int
    at: float
    scope: str
    device: str
    kind: str


def read_trace(path: Path) -> tuple[Device, ...]:
    """Return the devices of a log with the changes of its first 24 hours.

    Raises:
        ConfigurationError: the log cannot be read.
    """
    lines = sorted(_lines(path), key=attrgetter("at"))
    _check_span(lines, path)
    start = lines[0].at
    changes: dict[str, list[tuple[float, str]]] = defaultdict(list)
    follows: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if line.kind == "change":
            changes[line.scope].append((line.at - start, line.device))
        if line.device:
            follows[line.device].add(line.scope)
    devices = []
    for index, (name, scopes) in enumerate(sorted(follows.items())):
        seen = sorted(at for scope in scopes for at, writer in changes[scope] if writer != name and at < DAY)
        devices.append(Device(index, tuple(seen)))
    if not any(device.changes for device in devices):
        raise ConfigurationError(
            f"--trace {path}: no device has a change to see: a device follows the scopes of its lines"
        )
    return tuple(devices)


def _check_span(lines: Sequence[Line], path: Path) -> None:
    """Raise ConfigurationError if the lines, in order of time, cover less than a day until they end or pause."""
    last, after = lines[-1], None
    for line, following in itertools.pairwise(lines):
        if following.at - line.at > _MAX_SILENCE_S:
            last, after = line, following
            break
    span_s = last.at - lines[0].at
    if span_s >= _MIN_SPAN_S:
        return
    said = f"--trace {path}: spans {span_s / HOUR:.1f} hours, from line {lines[0].number} to line {last.number}"
    if after is not None:
        silent = (after.at - last.at) / DAY
        said += f", and is silent for {silent:,.0f} days then, until line {after.number} (is one of their times wrong?)"
    raise ConfigurationError(f"{said}; want a day, {_MIN_SPAN_S / HOUR:.0f} hours at the least")


def _lines(path: Path) -> list[Line]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = _COLUMNS - set(reader.fieldnames or ())
            if missing:
                raise ConfigurationError(f"--trace {path}: wants the columns {', '.join(sorted(missing))}")
            lines: list[Line] = []
            for row in reader:
                number = reader.line_num
                if len(lines) >= _MAX_LINES:
                    raise ConfigurationError(f"--trace {path}: has more than {_MAX_LINES:,} lines")
                if any(row[column] is None for column in _COLUMNS):
                    raise ConfigurationError(f"--trace {path}, line {number}: ends before all of its columns")
                at, kind = _seconds(row["time"], path, number), row["kind"].strip().lower()
                lines.append(Line(number, at, row["scope"], row["device"], kind))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"--trace {path}: cannot be read: {error}") from None
    if not lines:
        raise ConfigurationError(f"--trace {path}: has no lines")
    return lines


def _seconds(text: str, path: Path, number: int) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if math.isfinite(seconds):
        if abs(seconds) > _MAX_UNIX_S:
            raise ConfigurationError(f"--trace {path}, line {number}: want seconds since 1970: {text!r}")
        return seconds
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ConfigurationError(f"--trace {path}, line {number}: no time: {text!r}") from None
