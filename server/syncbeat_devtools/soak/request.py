"""Holds what a run is asked for, and reads it from texts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncbeat_devtools.soak.plan import DEFAULT_SHARES, Operation
from syncbeat_devtools.soak.verdict.objectives import Objectives, objective_names
from syncbeat_server.errors import ConfigurationError

LONGEST_S = 31 * 86_400.0
MOST_DEVICES = 50_000
MOST_RATE = 10_000.0
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


@dataclass(frozen=True)
class SoakRequest:
    """Holds what a run is asked for. What `as_run` tells decides its load, and is kept for a run that resumes."""

    duration_s: float
    rate: float
    shares: Mapping[Operation, float]
    devices: int
    stream_hold_s: float
    max_in_flight: int
    connections: int
    seed: int
    objectives: Objectives
    out: Path
    app_id: str = ""
    metrics: tuple[str, ...] = ()
    compare: Path | None = None
    resume: bool = False
    keep_users: bool = False
    heed_server: bool = True
    save_every_s: float = 30.0
    progress_s: float = 10.0

    def as_run(self) -> dict[str, Any]:
        """Return what decides the load, as JSON has it."""
        return {
            "duration_s": self.duration_s,
            "rate": self.rate,
            "shares": {str(name): share for name, share in self.shares.items()},
            "devices": self.devices,
            "stream_hold_s": self.stream_hold_s,
            "app_id": self.app_id,
            "seed": self.seed,
        }


def read_duration(text: str) -> float:
    """Return the seconds of a text as `48h`, `90m` or `60s`. Raises ValueError for any other."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])", text)
    seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
    if not 1.0 <= seconds <= LONGEST_S:
        raise ValueError("want a number with s, m, h or d: from 1s to 31d")
    return seconds


def read_shares(text: str) -> dict[Operation, float]:
    """Return the shares of a text as `poll=70,publish=15`; what it does not name keeps its default.

    Raises ValueError for an unknown name or a share that is no number from 0 on.
    """
    shares = dict(DEFAULT_SHARES)
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        if name not in DEFAULT_SHARES:
            raise ValueError(f"{name!r}: want one of {', '.join(DEFAULT_SHARES)}")
        shares[Operation(name)] = _number(name, number, 0.0, 1e6)
    if sum(shares.values()) <= 0:
        raise ValueError("want one share above 0")
    return shares


def read_objectives(texts: Sequence[str]) -> Objectives:
    """Return the objectives with those replaced that texts as `hint_p95_s=0.1` name. Raises ValueError."""
    given = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in objective_names():
            raise ValueError(f"{name!r}: want one of {', '.join(objective_names())}")
        given[name] = _number(name, number, 0.0, 1e9)
    return Objectives(**given)


def check_request(request: SoakRequest) -> None:
    """Raise ConfigurationError for what contradicts itself."""
    if request.devices > MOST_DEVICES:
        raise ConfigurationError(f"soak: {request.devices:,} devices: want at most {MOST_DEVICES:,}")


def _number(name: str, text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ValueError(f"{name}: want a number from {least:g} to {most:g}")
    return number
