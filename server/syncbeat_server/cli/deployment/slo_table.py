"""Lays out reports on objectives for a terminal, and compares one with an earlier one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from syncbeat_server.cli.status_table import clean, columns, objective_lines, seconds_of, section, span
from syncbeat_server.status.model import Goals, Trigger, Verdict, Workload
from syncbeat_server.status.policy.slo_triggers import growth_triggers

_VERDICT = "SLO_VERDICT_"
_NUMBERS, _SPANS = ("calls", "errors", "hints"), ("hintP95", "callP95", "cpuPerCall")

Answer = Mapping[str, Any]
"""GetSloReportResponse, or a part of it, as JSON has it."""


def is_report(found: object) -> bool:
    """Return True if this is a report that another can be compared with."""
    if not isinstance(found, dict) or not isinstance(found.get("workload"), dict):
        return False
    try:
        _workload(found)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def verdict_of(answer: Answer) -> str:
    """Return the verdict of a report, or of one of its triggers, by name."""
    return str(answer["verdict"]).removeprefix(_VERDICT)


def compared(answer: Answer, earlier: Answer) -> dict[str, Any]:
    """Return a report with triggers for what grew since an earlier one, and the verdict that it comes to with them."""
    grown = growth_triggers(_workload(answer), _workload(earlier), Goals().least_events)
    triggers = [*answer["triggers"], *map(_json, grown)]
    order = list(Verdict)
    worst = max((verdict_of(one) for one in (answer, *triggers)), key=lambda name: order.index(Verdict(name)))
    return {**answer, "verdict": f"{_VERDICT}{worst}", "triggers": triggers}


def report_table(answer: Answer) -> str:
    """Return the report as sections of text: its verdict, what it goes by, the objectives, and the workload."""
    rows: list[tuple[str, ...]] = [("FIGURE", "VERDICT", "VALUE", "WARN", "ROLLBACK", "WINDOW", "EVENTS")]
    rows += [_row(one) for one in answer["triggers"]]
    load = _workload(answer)
    told = (
        f"{load.calls:.0f} calls, {load.errors:.0f} failed by our fault; p95 {span(load.call_p95_s)}, of "
        f"{load.hints:.0f} hints {span(load.hint_p95_s)}; {span(load.cpu_s_per_call)} of CPU a call"
    )
    window = span(seconds_of(answer.get("window", "0s")))
    return "\n\n".join(
        [
            f"{verdict_of(answer)} over {window}, at {clean(answer.get('reportTime', '?'))}",
            section("figures", columns(rows, right={2, 3, 4, 5, 6})),
            section("objectives over 30 days", objective_lines(answer.get("objectives", []))),
            section("workload", [told]),
        ]
    )


def _row(one: Answer) -> tuple[str, ...]:
    unit = one["unit"]
    thresholds = (_figure(float(one[name]), unit) for name in ("warnThreshold", "rollbackThreshold"))
    window = span(seconds_of(one["window"])) if "window" in one else "now"
    events = f"{float(one['events']):.0f}" if "events" in one else "-"
    return (clean(one["name"]), verdict_of(one), _figure(float(one["value"]), unit), *thresholds, window, events)


def _figure(value: float, unit: str) -> str:
    if math.isinf(value):
        return "-"
    if unit == "s":
        return span(value)
    return f"{100 * value:.2f} %" if unit == "ratio" else f"{value:.4g}"


def _workload(answer: Answer) -> Workload:
    load = answer["workload"]
    calls, errors, hints = (_amount(float(load.get(name, 0.0))) for name in _NUMBERS)
    hint_p95_s, call_p95_s, cpu_s = (_amount(seconds_of(load.get(name, "0s"))) for name in _SPANS)
    return Workload(calls, errors, hints, hint_p95_s, call_p95_s, calls, cpu_s)


def _amount(value: float) -> float:
    if not 0.0 <= value < math.inf:
        raise ValueError("no amount")
    return value


def _json(one: Trigger) -> dict[str, Any]:
    return {
        "name": one.name,
        "verdict": f"{_VERDICT}{one.verdict}",
        "value": one.value,
        "warnThreshold": one.warn,
        "rollbackThreshold": "Infinity",
        "unit": one.unit,
        "events": one.events,
    }
