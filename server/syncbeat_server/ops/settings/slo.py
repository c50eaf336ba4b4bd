"""Settings of the service level objectives, and of the figures from outside that a report goes by."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from syncbeat_server.ops.settings.types import NAME, CheckedTogether, parse_entries

_MOST_FIGURES = 16
_FIGURE = re.compile(r"([^<>]+)([<>])([^<>]+)([<>])([^<>]+)")
_FORM = (
    "want name>warn>rollback, the second number not below the first, or name<warn<rollback, below it; its name of "
    "1 to 64 of A-Z a-z 0-9 _ . -"
)
_Share = Annotated[float, Field(ge=0.5, le=0.99999)]


class FigureEntry(BaseModel):
    """Entry of a figure from outside: its name, and what it must pass for WARN and for ROLLBACK.

    Written `name>warn>rollback` where more is worse, and `name<warn<rollback` where less is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    warn: float
    rollback: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse one entry. Raises ValueError when it is malformed."""
        match = _FIGURE.fullmatch(text)
        if match is None or match[2] != match[4]:
            raise ValueError
        warn, rollback = float(match[3]), float(match[5])
        wrong_way = rollback < warn if match[2] == ">" else rollback >= warn
        if wrong_way or not (math.isfinite(warn) and math.isfinite(rollback)):
            raise ValueError
        return cls(name=match[1].strip(), warn=warn, rollback=rollback)


def _figures(value: object) -> object:
    return parse_entries(value, FigureEntry.parse, _FORM) if isinstance(value, str) else value


def _once_each(entries: tuple[FigureEntry, ...]) -> tuple[FigureEntry, ...]:
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError("a figure stands twice")
    return entries


_Figures = Annotated[tuple[FigureEntry, ...], BeforeValidator(_figures), AfterValidator(_once_each)]


class SloSettings(CheckedTogether):
    """Settings of the objectives; all processes of a deployment have the same."""

    slo_availability: _Share = Field(
        default=0.999, description="The share of calls that are to be answered in time, and not refused under load."
    )
    slo_errors: float = Field(
        default=0.005, ge=0.00001, le=0.5, description="The share of calls that may fail by a fault of the service."
    )
    slo_hint_p95_s: float = Field(
        default=0.05, ge=0.0005, le=10.0, description="The seconds that 95 of 100 calls of GetHint are to take at most."
    )
    slo_call_p95_s: float = Field(
        default=0.2,
        ge=0.0005,
        le=10.0,
        description="The seconds that 95 of 100 calls of all methods are to take at most, but for streams.",
    )
    slo_push_accepted: _Share = Field(
        default=0.95,
        description="The share of attempts, with tokens that are not dead, that providers are to accept.",
    )
    slo_staleness: _Share = Field(
        default=0.95, description="The share of changes that devices are to hear of by their app's staleness target."
    )
    slo_least_events: int = Field(
        default=100, ge=1, le=1_000_000, description="Events of which a share is judged; a share of fewer is only told."
    )
    slo_window_scale: float = Field(
        default=1.0,
        ge=0.001,
        le=1.0,
        description="What all windows of the objectives are multiplied by, 30 days and hours alike; less than 1 for "
        "tests and soaks.",
    )
    slo_figures: _Figures = Field(
        default=(),
        max_length=_MOST_FIGURES,
        description="Figures that 'syncbeat-server slo put' enters, with what comes to WARN and to ROLLBACK: "
        "complaints>5>20,score<4.2<3.8.",
    )
    slo_figure_age_s: float = Field(
        default=86_400.0, ge=60.0, le=30 * 86_400.0, description="Seconds for which such a figure counts."
    )

    def faults(self) -> Iterator[str]:
        """Yield the faults of objectives that do not fit each other."""
        yield from super().faults()
        if self.slo_hint_p95_s > self.slo_call_p95_s:
            yield "SLO_HINT_P95_S: more than SLO_CALL_P95_S, which is about all calls"
