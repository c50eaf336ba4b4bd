"""Serves EventService: events of other systems, each once, with their effects."""

from __future__ import annotations

from collections.abc import Callable, Container

from google.protobuf.message import Message

from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_server.clock import Clock
from syncbeat_server.errors import AccessDenied
from syncbeat_server.events.service import EventService
from syncbeat_server.rpc.convert import events as convert
from syncbeat_server.rpc.convert.notification import Templates
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call


class EventServicer:
    """Converts requests, calls the event service, converts its results."""

    def __init__(
        self,
        events: EventService,
        templates: Templates,
        signed_sources: Callable[[str], Container[str]],
        clock: Clock,
    ) -> None:
        """`signed_sources(app_id)` are the names of an app's sources of webhooks, as they are configured now."""
        self._events = events
        self._templates = templates
        self._signed_sources = signed_sources
        self._clock = clock

    async def IngestEvent(self, request: pb.IngestEventRequest, call: Call) -> Message:
        """Record an event and carry out its effects, unless a signature would have to vouch for its source."""
        app_id = call.app(request.app_id)
        if request.source in self._signed_sources(app_id):
            # Under its name a caller could take the ids of its events, and move its orders.
            raise AccessDenied("this source is one of signed webhooks: only they bring its events")
        event = convert.incoming_event(request, call, self._templates(app_id))
        convert.check_occurred(event, self._clock.now())
        return convert.ingested(await self._events.ingest(event))

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
