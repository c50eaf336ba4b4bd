"""Serves EventService: events of other systems, each once, with their effects."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_server.events.service import EventService
from syncbeat_server.rpc.convert import events as convert
from syncbeat_server.rpc.convert.notification import Templates
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call


class EventServicer:
    """Converts requests, calls the event service, converts its results."""

    def __init__(self, events: EventService, templates: Templates) -> None:
        self._events = events
        self._templates = templates

    async def IngestEvent(self, request: pb.IngestEventRequest, call: Call) -> Message:
        """Record an event and carry out its effects."""
        templates = self._templates(call.app(request.app_id))
        return convert.ingested(await self._events.ingest(convert.incoming_event(request, call, templates)))

    async def GetEvent(self, request: pb.GetEventRequest, call: Call) -> Message:
        """Return a recorded event."""
        found = await self._events.event(convert.event_key(request, call))
        return pb.GetEventResponse(event=convert.event_message(found))

    async def ListEvents(self, request: pb.ListEventsRequest, call: Call) -> Message:
        """List recorded events, newest first."""
        app_id, wanted = call.app(request.app_id), convert.event_filter(request)
        page = Page.of(request, call, app_id, request.source, str(request.state))
        after = convert.list_place(page.after)
        if wanted is None:
            return pb.ListEventsResponse()
        found, more = await self._events.events(app_id, wanted, after, page.size)
        return convert.event_list(found, page.token_after(convert.list_key(found[-1])) if more else "")

    async def RetryEvent(self, request: pb.RetryEventRequest, call: Call) -> Message:
        """Carry out the effects of a failed event again."""
        answer = await self._events.retry(convert.event_key(request, call), call.caller, call.principal.methods)
        return pb.RetryEventResponse(receipt=convert.receipt(answer.receipt))
