"""Keeps the records of a run in a file, so that a run that was killed goes on with its figures."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syncbeat_devtools.soak.measure.histogram import COARSE, FINE, Histogram
from syncbeat_devtools.soak.measure.recorder import OpenPush, Recorder
from syncbeat_devtools.soak.measure.series import Point, Series, Tally, Totals
from syncbeat_devtools.soak.plan import Operation
from syncbeat_server.errors import ConfigurationError

_FORMAT = 1
_LARGEST = 64 << 20  # of a file that is read; ours have a few MiB


def write_state(path: Path, run: Mapping[str, Any], elapsed_s: float, recorder: Recorder) -> None:
    """Write the file as a whole or not at all: a kill at any moment leaves the one before.

    `run` is what the run was asked for, and holds no secret.
    """
    found = {
        "format": _FORMAT,
        "run": dict(run),
        "elapsed_s": elapsed_s,
        "width_s": recorder.series.width_s,
        "points": [_of_point(point) for point in recorder.series.points],
        "totals": _of_totals(recorder.totals),
        "verdicts": recorder.verdicts,
        "open_pushes": [[one.notification_id, one.left_s, one.found] for one in recorder.open_pushes],
    }
    replace_file(path, json.dumps(found, separators=(",", ":")))


def replace_file(path: Path, text: str) -> None:
    """Write a file as a whole, on disk before it takes the place of the one before."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_state(path: Path) -> tuple[dict[str, Any], float, Recorder]:
    """Return what a run was asked for, its elapsed seconds, and its records.

    Raises:
        ConfigurationError: there is no such file, or it is not one of ours.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigurationError(f"{path}: is not the state of a soak")
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ConfigurationError(f"{path}: was written by another version")
        recorder = Recorder(
            Series(float(found["width_s"]), [_to_point(one) for one in found["points"]]),
            _to_totals(found["totals"]),
            [(float(at_s), str(verdict)) for at_s, verdict in found["verdicts"]],
            # Versions before did not save them.
            [OpenPush(str(name), float(left_s), dict(states)) for name, left_s, states in found.get("open_pushes", [])],
        )
        return dict(found["run"]), float(found["elapsed_s"]), recorder
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: there is no run to resume") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise ConfigurationError(f"{path}: is not the state of a soak") from None


def _of_point(point: Point) -> dict[str, Any]:
    return {
        "tallies": _of_tallies(point.tallies),
        "poll": _of_histogram(point.poll_staleness),
        "stream": _of_histogram(point.stream_staleness),
        "rss": point.rss_octets,
        "cpu": point.cpu_s,
    }


def _to_point(found: Mapping[str, Any]) -> Point:
    return Point(
        _to_tallies(found["tallies"], COARSE),
        _to_histogram(found["poll"], COARSE),
        _to_histogram(found["stream"], COARSE),
        found["rss"],
        found["cpu"],
    )


def _of_totals(totals: Totals) -> dict[str, Any]:
    return {
        "tallies": _of_tallies(totals.tallies),
        "poll": _of_histogram(totals.poll_staleness),
        "stream": _of_histogram(totals.stream_staleness),
        "lateness": _of_histogram(totals.lateness),
        "causes": dict(totals.causes),
        "push_states": dict(totals.push_states),
    }


def _to_totals(found: Mapping[str, Any]) -> Totals:
    return Totals(
        _to_tallies(found["tallies"], FINE),
        _to_histogram(found["poll"], FINE),
        _to_histogram(found["stream"], FINE),
        _to_histogram(found["lateness"], FINE),
        Counter(found["causes"]),
        Counter(found["push_states"]),
    )


def _of_tallies(tallies: Mapping[Operation, Tally]) -> dict[str, Any]:
    return {name: [one.calls, one.errors, one.faults, _of_histogram(one.times)] for name, one in tallies.items()}


def _to_tallies(found: Mapping[str, Any], bits: int) -> dict[Operation, Tally]:
    return {
        Operation(name): Tally(calls, errors, faults, _to_histogram(times, bits))
        for name, (calls, errors, faults, times) in found.items()
    }


def _of_histogram(histogram: Histogram) -> list[Any]:
    return [histogram.total_s, *(number for pair in histogram.sparse() for number in pair)]


def _to_histogram(found: list[Any], bits: int) -> Histogram:
    return Histogram(bits, list(zip(found[1::2], found[2::2], strict=True)), float(found[0]))
