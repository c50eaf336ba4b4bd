"""Serves OpsService: how the processes of the deployment do."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.rpc.convert import status as convert
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.status.service import StatusService


class OpsServicer:
    """Calls the status service and converts its results. GetSloReport is not served yet."""

    def __init__(self, status: StatusService) -> None:
        self._status = status

    async def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> Message:
        """Return the figures of this process, of all processes, and of what they share."""
        return convert.status_message(await self._status.read(call.app(request.app_id), call.principal.apps))
