"""Serves SyncService: hints, activity, boosts, the change feed and its streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial

from google.protobuf.message import Message

from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.auth.model import Principal
from syncbeat_server.events.publish import Publisher
from syncbeat_server.rpc.convert import stream_events
from syncbeat_server.rpc.convert import sync as convert
from syncbeat_server.rpc.convert.fields import cursor, seconds, timestamp
from syncbeat_server.rpc.convert.notification import Templates
from syncbeat_server.rpc.convert.page_tokens import page_size_of
from syncbeat_server.rpc.fastpath.hint_message import HintAnswerEncoder, hint_answer, hint_message
from syncbeat_server.rpc.pipeline.call_context import Call, TrySync
from syncbeat_server.sync.model import DeviceKey, StreamEvent
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.watch_firehose import Firehose
from syncbeat_server.sync.streams.watch_hints import HintStreams


class SyncServicer:
    """Converts requests, calls the sync services, converts their results."""

    def __init__(
        self,
        sync: SyncService,
        streams: HintStreams,
        firehose: Firehose,
        publisher: Publisher,
        recheck: Callable[[Principal], Awaitable[None]],
        templates: Templates,
    ) -> None:
        """`recheck` raises when the caller of an open stream is no longer let in."""
        self._sync = sync
        self._templates = templates
        self._streams = streams
        self._firehose = firehose
        self._publisher = publisher
        self._recheck = recheck
        self._encode = stream_events.EventEncoder().encode
        self._encode_hint = HintAnswerEncoder().encode
        self.try_sync: Mapping[str, TrySync] = {"GetHint": self._try_get_hint}

    async def GetHint(self, request: pb.GetHintRequest, call: Call) -> Message:
        """Return the hint that says when a device should ask again."""
        return hint_answer(await self._sync.hint(convert.poll(request, call), is_user=call.is_user))

    def _try_get_hint(self, request: pb.GetHintRequest, call: Call) -> bytes | None:
        hint = self._sync.try_hint(convert.poll(request, call))
        return None if hint is None else self._encode_hint(hint)

    async def ReportActivity(self, request: pb.ReportActivityRequest, call: Call) -> Message:
        """Record a device's activity, and return the hint that follows from it."""
        device, activity = convert.device_key(request, call), convert.activity(request.activity)
        hint = await self._sync.report_activity(device, activity, is_user=call.is_user)
        return pb.ReportActivityResponse(hint=hint_message(hint))

    async def BoostScope(self, request: pb.BoostScopeRequest, call: Call) -> Message:
        """Hold a scope's devices at a tier or faster for a while."""
        priority = convert.priority(request)
        app_id, boost_s = call.app(request.app_id), seconds(request.duration)
        expires_at = await self._sync.boost(app_id, request.scope, priority, boost_s)
        return pb.BoostScopeResponse(expire_time=timestamp(expires_at))

    async def ListChanges(self, request: pb.ListChangesRequest, call: Call) -> Message:
        """Return a page of a scope's feed, and the hint that says when to ask again."""
        user_id = call.user(request.user_id) if call.is_user else request.user_id or None
        app_id = call.app(request.app_id)
        device = DeviceKey(app_id, user_id, request.device_id) if user_id and request.device_id else None
        page, hint = await self._sync.list_changes(
            app_id, user_id, device, cursor(request.cursor), page_size_of(request.page_size)
        )
        return convert.change_page(page, hint_message(hint))

    async def PublishChanges(self, request: pb.PublishChangesRequest, call: Call) -> Message:
        """Write changes, and wake the devices that they concern."""
        templates = self._templates(call.app(request.app_id))
        published = await self._publisher.publish(convert.publish(request, call, templates))
        return convert.published(request, published)

    async def WatchHints(self, request: pb.WatchHintsRequest, call: Call) -> AsyncGenerator[bytes, None]:
        """Stream changes and hints of one user's scopes, or of all scopes to a service."""
        events = self._events(request, call)
        try:
            async for event in events:
                for message in self._encode(event):
                    yield message
        finally:
            await events.aclose()

    def _events(self, request: pb.WatchHintsRequest, call: Call) -> AsyncGenerator[StreamEvent, None]:
        if request.all_scopes:
            caller = call.principal._replace(app_id=call.app(request.app_id))
            return self._firehose.watch(stream_events.firehose_request(request, call, partial(self._recheck, caller)))
        return self._streams.watch(stream_events.watch_request(request, call, partial(self._recheck, call.principal)))
