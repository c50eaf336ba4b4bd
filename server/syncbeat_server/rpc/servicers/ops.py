"""Serves OpsService: how the processes of the deployment do, and who did what."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.audit.service import AuditService
from syncbeat_server.rpc.convert import audit, status
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.status.service import StatusService


class OpsServicer:
    """Calls the status and audit services and converts their results. GetSloReport is not served yet."""

    def __init__(self, status: StatusService, audit: AuditService) -> None:
        self._status = status
        self._audit = audit

    async def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> Message:
        """Return the figures of this process, of all processes, and of what they share."""
        return status.status_message(await self._status.read(call.app(request.app_id), call.principal.apps))

    async def ListAuditEntries(self, request: pb.ListAuditEntriesRequest, call: Call) -> Message:
        """List who did what sensitive thing, newest first."""
        app_id, wanted = call.app(request.app_id), audit.audit_filter(request)
        page = Page.of(request, call, app_id, *audit.filter_texts(request))
        after = audit.entry_place(page.after)
        found = await self._audit.entries_of_app(app_id, call.principal.apps, wanted, after, page.limit)
        return audit.entry_list(*page.split(found, audit.entry_key))
