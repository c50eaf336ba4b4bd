"""Converts objectives and reports on them to messages."""

from __future__ import annotations

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.rpc.convert.fields import duration, timestamp
from syncbeat_server.status.model import ObjectiveStatus, SloReport, Trigger, Verdict, Workload


def report_message(report: SloReport) -> pb.GetSloReportResponse:
    """Return the answer to GetSloReport."""
    return pb.GetSloReportResponse(
        verdict=_verdict(report.verdict),
        triggers=map(_trigger, report.triggers),
        window=duration(report.window_s),
        objectives=map(objective_message, report.objectives),
        workload=_workload(report.workload),
        report_time=timestamp(report.made_at),
    )


def objective_message(one: ObjectiveStatus) -> pb.SloStatus:
    """Return an objective as a message."""
    return pb.SloStatus(
        name=one.name,
        objective=one.objective,
        actual=one.actual,
        error_budget_remaining=one.budget_left,
        events=one.events,
    )


def _verdict(verdict: Verdict) -> pb.SloVerdict.ValueType:
    return pb.SloVerdict.Value(f"SLO_VERDICT_{verdict}")


def _trigger(one: Trigger) -> pb.SloTrigger:
    return pb.SloTrigger(
        name=one.name,
        verdict=_verdict(one.verdict),
        value=one.value,
        warn_threshold=one.warn,
        rollback_threshold=one.rollback,
        unit=one.unit,
        window=duration(one.window_s) if one.window_s else None,
        events=one.events,
    )


def _workload(one: Workload) -> pb.SloWorkload:
    return pb.SloWorkload(
        calls=one.calls,
        errors=one.errors,
        hints=one.hints,
        hint_p95=duration(one.hint_p95_s),
        call_p95=duration(one.call_p95_s),
        cpu_per_call=duration(one.cpu_s_per_call),
    )
