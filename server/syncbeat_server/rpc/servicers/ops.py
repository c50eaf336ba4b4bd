"""Serves OpsService: how the processes of the deployment do, and whether it keeps its objectives."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.rpc.convert import slo as convert_slo
from syncbeat_server.rpc.convert import status as convert
from syncbeat_server.rpc.convert.fields import seconds
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.status.service import StatusService
from syncbeat_server.status.slo_report import SloReporter


class OpsServicer:
    """Calls the status service and the reporter, and converts their results."""

    def __init__(self, status: StatusService, slo: SloReporter) -> None:
        self._status = status
        self._slo = slo

    async def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> Message:
        """Return the figures of this process, of all processes, and of what they share."""
        return convert.status_message(await self._status.read(call.app(request.app_id), call.principal.apps))

    async def GetSloReport(self, request: pb.GetSloReportRequest, call: Call) -> Message:
        """Return whether the deployment keeps its objectives; the app only says for whom the caller acts."""
        call.app(request.app_id)
        window_s = seconds(request.window) if request.HasField("window") else None
        return convert_slo.report_message(await self._slo.report(window_s))
