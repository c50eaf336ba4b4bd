"""Pushes from SendNotification to recorded SENT against firebase-admin's own sender, on one fake FCM, in one run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from statistics import median

from bench.figure import Better, Figure, Options, report_progress
from bench.push_stage import USERS, PushRun, push_stage

_CALLS = 2
_EACH = 1_000


@dataclass(frozen=True)
class _Side:
    pushed: PushRun
    firebase_per_s: float
    firebase_cpu_us: float
    ceiling: float | None


def cpu(options: Options) -> Figure:
    """Measure our CPU per delivery for the whole pipeline (accept, claim, send, record), against firebase-admin's."""
    sides = _sides(options)
    return Figure(
        name="push_cpu_us_vs_firebase_admin",
        unit="us of CPU/delivery",
        better=Better.LESS,
        value=median(side.pushed.cpu_us for side in sides),
        baseline=median(side.firebase_cpu_us for side in sides),
        runs=[[side.pushed.cpu_us, side.firebase_cpu_us] for side in sides],
        notes={
            "baseline_is": "firebase-admin's send_each_async alone, batches of 500, the same fake over HTTP/2",
            "worker_cpu_us": round(median(side.pushed.worker_cpu_us for side in sides), 1),
            "database_cpu_us": round(median(side.pushed.database_cpu_us for side in sides), 1),
            **_conditions(sides),
        },
    )


def rate(options: Options) -> Figure:
    """Measure deliveries per second with one worker, against firebase-admin's."""
    sides = _sides(options)
    ours = [(side.pushed.count / side.pushed.seconds, side.firebase_per_s) for side in sides]
    return Figure(
        name="push_delivered_per_s",
        unit="deliveries/s",
        better=Better.MORE,
        value=median(mine for mine, _ in ours),
        baseline=median(theirs for _, theirs in ours),
        runs=[list(pair) for pair in ours],
        notes={"baseline_is": "firebase-admin's send_each_async on the same fake", **_conditions(sides)},
    )


def _conditions(sides: list[_Side]) -> dict[str, object]:
    ceilings = [side.ceiling for side in sides if side.ceiling is not None]
    return {
        "fake_ceiling_per_s": round(median(ceilings)) if ceilings else None,
        "deliveries_each_round": _CALLS * _EACH,
        "ramp": "off",
        "fsync": False,
    }


@functools.lru_cache(maxsize=1)  # both figures are of the same run
def _sides(options: Options) -> list[_Side]:
    sides: list[_Side] = []
    with push_stage() as stage:
        stage.push(1, USERS // 2)  # connections and caches
        for number in range(1, options.rounds + 1):
            pushed = stage.push(_CALLS, _EACH)
            per_s, cpu_us = stage.run_firebase(_CALLS * _EACH)
            sides.append(_Side(pushed, per_s, cpu_us, stage.ceiling(options.seconds)))
            ours = f"{pushed.count / pushed.seconds:,.0f}/s at {pushed.cpu_us:.0f} us"
            report_progress(f"push: round {number}/{options.rounds}: {ours} against {per_s:,.0f}/s at {cpu_us:,.0f} us")
    return sides
