"""Draws lines over time as SVG, coloured by the classes of the page that holds it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 12, 10, 34
_TICKS = 4


@dataclass(frozen=True)
class Line:
    """A line: its name, the class that colours it, and points of seconds and values; None breaks it."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Threshold:
    """A horizontal line that a figure is to keep below, or above."""

    name: str
    value: float


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str,
    thresholds: Sequence[Threshold] = (),
    logarithmic: bool = False,
    from_zero: bool = True,
) -> str:
    """Return a plot with its title and legend, as a `figure`; a note in its place if there is nothing to draw."""
    lines = [line for line in lines if any(value is not None for _, value in line.points)]
    if not lines:
        return f"<figure><h3>{escape(title)}</h3><p class='none'>not measured</p></figure>"
    axis = _Axis.of(lines, thresholds, logarithmic=logarithmic, from_zero=from_zero)
    last_s = max(at_s for line in lines for at_s, _ in line.points) or 1.0
    parts = [*_grid(axis, unit, last_s)]
    for threshold in thresholds:
        y = axis.y(threshold.value)
        parts.append(f"<line class='threshold' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(
            f"<text class='threshold-name' x='{_WIDTH - _RIGHT - 2}' y='{y - 4:.1f}'>{escape(threshold.name)}</text>"
        )
    parts += [f"<path class='line {line.style}' d='{_path(line, axis, last_s)}'/>" for line in lines]
    legend = "".join(f"<li><i class='{line.style}'></i>{escape(line.name)}</li>" for line in lines)
    return (
        f"<figure><h3>{escape(title)}</h3><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' "
        f"aria-label='{escape(title, quote=True)}'>{''.join(parts)}</svg><ul class='legend'>{legend}</ul></figure>"
    )


def draw_strip(title: str, spans: Sequence[tuple[float, float, str]], last_s: float) -> str:
    """Return spans of time as a strip, each coloured by its class, which is its name in lower case."""
    width = _WIDTH - _LEFT - _RIGHT
    parts = []
    for begin_s, end_s, name in spans:
        left, right = (_LEFT + width * min(1.0, moment / last_s) for moment in (begin_s, end_s))
        text = f"{escape(name)} from {clock_text(begin_s)} to {clock_text(end_s)}"
        parts.append(
            f"<rect class='{name.lower()}' x='{left:.1f}' y='4' width='{max(1.0, right - left):.1f}' height='18'>"
            f"<title>{text}</title></rect>"
        )
    legend = "".join(
        f"<li><i class='{name.lower()}'></i>{escape(name)}</li>" for name in dict.fromkeys(name for *_, name in spans)
    )
    return (
        f"<figure><h3>{escape(title)}</h3><svg viewBox='0 0 {_WIDTH} 26' role='img' "
        f"aria-label='{escape(title, quote=True)}'>{''.join(parts)}</svg><ul class='legend'>{legend}</ul></figure>"
    )


def clock_text(seconds: float) -> str:
    """Return a moment of a run as `2:05` hours and minutes, or `1:30.5` minutes and seconds of a short one."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


@dataclass(frozen=True)
class _Axis:
    least: float
    most: float
    logarithmic: bool

    @classmethod
    def of(cls, lines: Sequence[Line], thresholds: Sequence[Threshold], *, logarithmic: bool, from_zero: bool) -> _Axis:
        values = [value for line in lines for _, value in line.points if value is not None]
        values += [one.value for one in thresholds]
        if logarithmic:
            values = [value for value in values if value > 0] or [1.0]
            return cls(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.01)), True)
        most, least = max(values), min([0.0, *values]) if from_zero else min(values)
        margin = 0.08 * (most - least) or 1.0
        return cls(least if from_zero else least - margin, most + margin, False)

    def y(self, value: float) -> float:
        if self.logarithmic:
            share = math.log10(max(value, self.least) / self.least) / math.log10(self.most / self.least)
        else:
            share = (value - self.least) / (self.most - self.least)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = round(math.log10(self.least)), round(math.log10(self.most))
            return [10.0**exponent for exponent in range(first, last + 1)]
        step = _round_step((self.most - self.least) / _TICKS)
        first_step = math.ceil(self.least / step - 1e-9)
        return [number * step for number in range(first_step, math.floor(self.most / step + 1e-9) + 1)]


def _grid(axis: _Axis, unit: str, last_s: float) -> list[str]:
    parts = []
    for tick in axis.ticks():
        y = axis.y(tick)
        parts.append(f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text class='tick y' x='{_LEFT - 6}' y='{y + 4:.1f}'>{escape(_label(tick, unit))}</text>")
    for moment in _moments(last_s):
        x = _x(moment, last_s)
        parts.append(f"<line class='grid' x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_HEIGHT - _BOTTOM}'/>")
        parts.append(f"<text class='tick x' x='{x:.1f}' y='{_HEIGHT - _BOTTOM + 16}'>{clock_text(moment)}</text>")
    return parts


def _path(line: Line, axis: _Axis, last_s: float) -> str:
    parts, draws = [], False
    for at_s, value in line.points:
        if value is None:
            draws = False
            continue
        parts.append(f"{'L' if draws else 'M'}{_x(at_s, last_s):.1f} {axis.y(value):.1f}")
        if not draws:
            parts.append("h.1")  # so that a point between two gaps is seen
        draws = True
    return "".join(parts)


def _x(at_s: float, last_s: float) -> float:
    return _LEFT + at_s / last_s * (_WIDTH - _LEFT - _RIGHT)


def _moments(last_s: float) -> list[float]:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 259_200)
    step = next((one for one in steps if last_s / one <= 8), 604_800)
    return [float(moment) for moment in range(0, int(last_s) + 1, step)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def _label(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{value * 1000:g} ms" if value else "0"
    if unit == "%":
        return f"{value * 100:.4g} %"
    return f"{value:.6g} {unit}".strip()
