"""Plots: staleness against requests with the bounds, and the sweeps. Needs the extra `simulate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.install_hint import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MILLION = 1e6
_FLEET = 20_000
"""The number of devices that the scale of requests is designed for; it is scaled for others."""
_INK, _DPI = "#333333", 110
_STYLES = {
    "fixed-30s": ("#999999", "o"),
    "tier-table": ("#bb8844", "s"),
    "backoff": ("#cc6677", "v"),
    "sqrt-ewma": ("#4477aa", "^"),
    "ewma, tuned": ("#88ccee", "<"),
    "fast after activity, tuned": ("#ddaa33", ">"),
    "fast in the foreground, tuned": ("#bb8844", "p"),
    "adaptive-pull": ("#117733", "D"),
    "adaptive-hybrid": ("#882255", "P"),
}
_LINES = {
    "known-parameters": ("#117733", ":", "all parameters known (the causal ceiling of polling)"),
    "bound of polling": (_INK, "--", "bound of polling: all rates known beforehand"),
    "rates of circumstances, in hindsight": ("#117733", ":", "rates of circumstances, counted in hindsight"),
    "each commit known beforehand": (_INK, "--", "bound: each commit known beforehand"),
    "bound with signals": (_INK, "-.", "bound with signals"),
}


def check_plot(path: Path) -> None:
    """Raise ConfigurationError if the file cannot be drawn, before hours of work."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigurationError(f"--plot, --sweep: {install_command('server', 'simulate')}") from None
    mpl.use("Agg")
    if path.suffix not in (".png", ".svg"):
        raise ConfigurationError(f"{path}: want a name that ends with .png or .svg")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path}: there is no such directory")
    if path.is_dir():
        raise ConfigurationError(f"{path}: is a directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"{path}: may not be written")


def draw_curves(path: Path, found: dict[str, list[dict[str, float]]], title: str, devices: int) -> None:
    """Plot requests per day against mean staleness, both on logarithmic axes.

    A straight line means requests * staleness = const.
    """
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6.5))
    for name, (colour, marker) in _STYLES.items():
        if name in found:
            _line(axes, found[name], label=name, color=colour, marker=marker, linewidth=1.5, markersize=5)
    for name, (colour, style, label) in _LINES.items():
        if name in found:
            _line(axes, found[name], label=label, color=colour, linestyle=style, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [3, 5, 7.5, 10, 15, 20, 30, 45, 60]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    scale = devices / _FLEET
    amounts = [amount * scale for amount in (0.5, 1, 2, 5, 10, 20, 50, 100)]
    axes.set_yticks(amounts, [f"{amount:.3g} M" if amount >= 0.1 else f"{amount * 1000:.3g} k" for amount in amounts])
    axes.set_xlabel("mean staleness of a change, seconds")
    axes.set_ylabel(f"requests a day of {devices:,} devices")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    least = min(point["requests"] for points in found.values() for point in points) / _MILLION
    axes.set_ylim(min(0.4 * scale, 0.8 * least), 500 * scale)
    axes.legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def draw_sweeps(path: Path, found: dict[str, Any]) -> None:
    """Plot requests, and mean and 95th percentile of staleness, of the hybrid as its assumptions change."""
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(2, 3, figsize=(13, 7.5))
    for axes, swept in zip(grid.flat, found.values(), strict=True):
        points = swept["points"]
        values = [point["value"] for point in points]
        axes.plot(values, [point["requests"] / _MILLION for point in points], "P-", color="#882255")
        axes.set_ylim(0, 1.3 * max(point["requests"] for point in points) / _MILLION)
        axes.set_xlabel(swept["meaning"], fontsize=8)
        axes.set_ylabel("M requests a day", color="#882255", fontsize=8)
        beside = axes.twinx()
        beside.plot(values, [point["mean_s"] for point in points], "o--", color="#4477aa", label="mean")
        beside.plot(values, [point["p95_s"] for point in points], "^:", color="#4477aa", label="95th percentile")
        beside.set_yscale("log")
        beside.set_ylim(1, 1000)
        seconds = [1, 3, 10, 30, 100, 300, 1000]
        beside.set_yticks(seconds, [f"{at} s" for at in seconds], minor=False)
        beside.minorticks_off()
        beside.set_ylabel("staleness, seconds", color="#4477aa", fontsize=8)
        beside.legend(fontsize=7, loc="upper left")
        axes.grid(visible=True, alpha=0.3)
    figure.suptitle("adaptive-hybrid at one price, as its assumptions change one at a time", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _line(axes: Axes, points: list[dict[str, float]], **style: Any) -> None:
    ordered = sorted(points, key=lambda point: point["mean_s"])
    axes.plot([point["mean_s"] for point in ordered], [point["requests"] / _MILLION for point in ordered], **style)
