"""Compares a run with the report of an earlier one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syncbeat_devtools.soak.verdict.objectives import Objectives, Trigger

LEAST_CALLS = 50
"""The calls from which on a 95th percentile is compared: below, two of them decide it."""


def compare(now: Mapping[str, Any], earlier: Mapping[str, Any], objectives: Objectives) -> list[Trigger]:
    """Return how many times each operation's p95, and the CPU of a call, are what they were in an earlier report.

    Operations that one of the two has too few calls of are left out, and CPU if one of the two did not read it.
    """
    found = []
    for name, one in now["operations"].items():
        other = earlier["operations"].get(name)
        if other is None or min(_successes(one), _successes(other)) < LEAST_CALLS:
            continue
        if one["p95_s"] and other["p95_s"]:
            found.append(Trigger(f"{name}_p95_over_earlier", one["p95_s"] / other["p95_s"], objectives.over_earlier))
    cpu, was = now["server"]["cpu_s_per_call"], earlier["server"]["cpu_s_per_call"]
    if cpu and was:
        found.append(Trigger("cpu_per_call_over_earlier", cpu / was, objectives.over_earlier))
    return found


def _successes(operation: Mapping[str, Any]) -> int:
    return int(operation["calls"]) - int(operation["errors"])
