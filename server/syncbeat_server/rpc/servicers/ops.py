"""Serves OpsService: how the processes of the deployment do, whether it keeps its objectives, and who did what."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.audit.service import AuditService
from syncbeat_server.rpc.convert import audit as convert_audit
from syncbeat_server.rpc.convert import slo as convert_slo
from syncbeat_server.rpc.convert import status as convert
from syncbeat_server.rpc.convert.fields import seconds
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.status.service import StatusService
from syncbeat_server.status.slo_report import SloReporter


class OpsServicer:
    """Calls the status service, the reporter and the audit service, and converts their results."""

    def __init__(self, status: StatusService, slo: SloReporter, audit: AuditService) -> None:
        self._status = status
        self._slo = slo
        self._audit = audit

    async def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> Message:
        """Return the figures of this process, of all processes, and of what they share."""
        return convert.status_message(await self._status.read(call.app(request.app_id), call.principal.apps))

    async def GetSloReport(self, request: pb.GetSloReportRequest, call: Call) -> Message:
        """Return whether the deployment keeps its objectives; the app only says for whom the caller acts."""
        call.app(request.app_id)
        window_s = seconds(request.window) if request.HasField("window") else None
        return convert_slo.report_message(await self._slo.report(window_s))

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, call: Call) -> Message:
        """List who did what sensitive thing, newest first."""
        app_id, wanted = call.app(request.app_id), convert_audit.audit_filter(request)
        page = Page.of(request, call, app_id, *convert_audit.filter_texts(request))
        after = convert_audit.entry_place(page.after)
        found = await self._audit.entries_of_app(app_id, call.principal.apps, wanted, after, page.limit)
        return convert_audit.entry_list(*page.split(found, convert_audit.entry_key))
