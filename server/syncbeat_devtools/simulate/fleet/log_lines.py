"""Reads a user's own log in place of a generated fleet.

Events are CSV with the columns time, scope, device and kind. `time` is unix seconds or ISO 8601. A line of kind
`change` reports a change of the scope; its device is the writer, which need not be notified, or is empty. A line of
kind `foreground` shows that a user is active. Lines of any other kind (`poll`, say) show that the device follows the
scope.

Messages are lines of a sender, a receiver and unix seconds, as public sets of messages have them. The scope is the
pair: the sender writes a change, the receiver follows.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from syncbeat_devtools.simulate.fleet.devices import DAY, HOUR
from syncbeat_server.errors import ConfigurationError

MIN_SPAN_S = 20 * HOUR
"""The least span of a log, and of a day of it, that is taken for a day."""

CHANGE, FOREGROUND, FOLLOWS = "change", "foreground", "open"

_MAX_LINES = 5_000_000
_COLUMNS = {"time", "scope", "device", "kind"}
_MAX_SILENCE_S = 30 * DAY
_MAX_UNIX_S = 1e11
"""Unix seconds of the year 5138: larger numbers are milliseconds."""
_MESSAGE_COLUMNS = 3


class LogFormat(StrEnum):
    """The formats of a log."""

    EVENTS = "events"
    MESSAGES = "messages"


class Line(NamedTuple):
    """One event of a log, in unix seconds, and its line in the file."""

    number: int
    at: float
    scope: str
    device: str
    kind: str


def read_lines(path: Path, form: LogFormat = LogFormat.EVENTS) -> tuple[Line, ...]:
    """Return the events of a log in the order of time.

    Raises:
        ConfigurationError: the log cannot be read, or spans less than a day.
    """
    read = _messages if form is LogFormat.MESSAGES else _events
    lines: list[Line] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line in read(file, path):
                if len(lines) >= _MAX_LINES:
                    raise ConfigurationError(f"--trace {path}: has more than {_MAX_LINES:,} lines")
                lines.append(line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"--trace {path}: cannot be read: {error}") from None
    if not lines:
        raise ConfigurationError(f"--trace {path}: has no lines")
    lines.sort(key=attrgetter("at"))
    _check_span(lines, path)
    return tuple(lines)


def _check_span(lines: Sequence[Line], path: Path) -> None:
    """Raise ConfigurationError if the lines cover less than a day, or pause as no log does: a mistyped time would."""
    last, after = lines[-1], None
    for line, following in itertools.pairwise(lines):
        if following.at - line.at > _MAX_SILENCE_S:
            last, after = line, following
            break
    span_s = last.at - lines[0].at
    if span_s >= MIN_SPAN_S and after is None:
        return
    said = f"--trace {path}: spans {span_s / HOUR:.1f} hours, from line {lines[0].number} to line {last.number}"
    if after is not None:
        silent = (after.at - last.at) / DAY
        said += f", and is silent for {silent:,.0f} days then, until line {after.number} (is one of their times wrong?)"
    raise ConfigurationError(f"{said}; want a day, {MIN_SPAN_S / HOUR:.0f} hours at the least")


def _events(file: Iterator[str], path: Path) -> Iterator[Line]:
    reader = csv.DictReader(file)
    missing = _COLUMNS - set(reader.fieldnames or ())
    if missing:
        raise ConfigurationError(f"--trace {path}: wants the columns {', '.join(sorted(missing))}")
    for row in reader:
        number = reader.line_num
        if any(row[column] is None for column in _COLUMNS):
            raise ConfigurationError(f"--trace {path}, line {number}: ends before all of its columns")
        at, kind = _seconds(row["time"], path, number), row["kind"].strip().lower()
        yield Line(number, at, row["scope"], row["device"], kind)


def _messages(file: Iterator[str], path: Path) -> Iterator[Line]:
    for number, text in enumerate(file, start=1):
        words = text.replace(",", " ").split()
        if not words or words[0].startswith(("#", "%")) or (number == 1 and _is_head(words)):
            continue
        if len(words) < _MESSAGE_COLUMNS:
            raise ConfigurationError(f"--trace {path}, line {number}: want a sender, a receiver and unix seconds")
        sender, receiver, at = words[0], words[1], _seconds(words[2], path, number)
        if sender == receiver:
            continue
        scope = " ".join(sorted((sender, receiver)))
        yield Line(number, at, scope, sender, CHANGE)
        yield Line(number, at, scope, receiver, FOLLOWS)


def _is_head(words: Sequence[str]) -> bool:
    try:
        float(words[-1] if len(words) < _MESSAGE_COLUMNS else words[2])
    except ValueError:
        return True
    return False


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
