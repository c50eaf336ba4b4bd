"""A day of a user's own log instead of a made fleet: CSV with the columns time, scope, device and kind.

`time` is unix seconds or ISO 8601. A line of kind `change` says that the scope changed; its device is the writer, who
need not be told, or is empty. Lines of any other kind (`poll`, say) tell that the device follows the scope.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from syncbeat_server.devtools.simulate.fleet import DAY, Device
from syncbeat_server.errors import ConfigurationError

_MOST_LINES = 5_000_000
_COLUMNS = {"time", "scope", "device", "kind"}


class Line(NamedTuple):
    """One event of a log, in unix seconds."""

    at: float
    scope: str
    device: str
    kind: str


def read_trace(path: Path) -> tuple[Device, ...]:
    """The devices of a log and what they have to see of its first 24 hours; ConfigurationError if it cannot be read."""
    lines = _lines(path)
    start = min(line.at for line in lines)
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


def _lines(path: Path) -> list[Line]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = _COLUMNS - set(reader.fieldnames or ())
            if missing:
                raise ConfigurationError(f"--trace {path}: wants the columns {', '.join(sorted(missing))}")
            lines = []
            for number, row in enumerate(reader, start=2):
                if number > _MOST_LINES:
                    raise ConfigurationError(f"--trace {path}: has more than {_MOST_LINES:,} lines")
                lines.append(Line(_seconds(row["time"], path, number), row["scope"], row["device"], row["kind"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"--trace {path}: cannot be read: {error}") from None
    if not lines:
        raise ConfigurationError(f"--trace {path}: has no lines")
    return lines


def _seconds(text: str | None, path: Path, number: int) -> float:
    try:
        seconds = float(text or "")
        if math.isfinite(seconds):
            return seconds
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        raise ConfigurationError(f"--trace {path}, line {number}: no time: {text!r}") from None
