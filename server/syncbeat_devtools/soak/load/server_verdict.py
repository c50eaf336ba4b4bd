"""Asks a deployment for its own verdict, where it serves one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from syncbeat import SyncbeatClient
from syncbeat.v1 import ops_service_pb2 as ops
from syncbeat_devtools.soak.verdict.objectives import Verdict
from syncbeat_server.rpc.deployment import CallError, describe_failure

_LEAST_WINDOW_S, _MOST_WINDOW_S = 60.0, 30 * 86_400.0  # of the contract


@dataclass(frozen=True)
class ServerVerdict:
    """Holds what GetSloReport answered; `verdict` is None if it did not, and `why` says why."""

    verdict: Verdict | None
    why: str = ""
    triggers: tuple[dict[str, Any], ...] = ()


async def ask_server(client: SyncbeatClient, window_s: float) -> ServerVerdict:
    """Return the server's verdict about the last `window_s` seconds, as far as the contract allows. Never fails."""
    request = ops.GetSloReportRequest()
    request.window.FromSeconds(round(min(_MOST_WINDOW_S, max(_LEAST_WINDOW_S, window_s))))
    try:
        answer = await client.ops.GetSloReport(request)
    except CallError as error:
        return ServerVerdict(None, str(describe_failure(error)))
    name = _name(answer.verdict)
    if name not in Verdict.__members__:
        return ServerVerdict(None, f"the server answers {name}")
    return ServerVerdict(Verdict[name], "", tuple(_as_json(one) for one in answer.triggers))


def _as_json(trigger: ops.SloTrigger) -> dict[str, Any]:
    return {
        "name": trigger.name,
        "verdict": _name(trigger.verdict),
        "value": _finite(trigger.value),
        "warn_threshold": _finite(trigger.warn_threshold),
        "rollback_threshold": _finite(trigger.rollback_threshold),
        "unit": trigger.unit,
    }


def _finite(number: float) -> float | None:
    """Return a number, or None for an infinity or NaN: JSON has neither."""
    return number if math.isfinite(number) else None


def _name(verdict: ops.SloVerdict.ValueType) -> str:
    """Return the name of a verdict without its prefix; a newer server's that has none here by its number."""
    known = ops.SloVerdict.DESCRIPTOR.values_by_number.get(verdict)
    return str(verdict) if known is None else str(known.name).removeprefix("SLO_VERDICT_")
