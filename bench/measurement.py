"""One measurement of a figure in a process of one revision."""

from __future__ import annotations

from dataclasses import dataclass

from bench.figure import Better


class MeasurementFailed(Exception):
    """A measurement did not finish; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """The result of one process: the figure's value, and the CPU per request if the figure reports it.

    `better` is None for old revisions whose figures do not report it.
    """

    value: float
    cpu_us: float | None = None
    better: Better | None = None
