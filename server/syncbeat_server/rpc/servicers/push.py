"""Serves PushService: notifications, their deliveries, and acknowledgements."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from google.protobuf.message import Message

from syncbeat.v1 import push_service_pb2 as pb
from syncbeat_server.clock import Clock
from syncbeat_server.push.delivery.watch_deliveries import DeliveryWatches
from syncbeat_server.push.service import PushService
from syncbeat_server.rpc.convert import push as convert
from syncbeat_server.rpc.convert.fields import content_hash, uuid_text
from syncbeat_server.rpc.convert.notification import Templates
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call


class PushServicer:
    """Converts requests, calls the push service, converts its results."""

    def __init__(self, push: PushService, watches: DeliveryWatches, templates: Templates, clock: Clock) -> None:
        self._push = push
        self._watches = watches
        self._templates = templates
        self._clock = clock

    async def SendNotification(self, request: pb.SendNotificationRequest, call: Call) -> Message:
        """Accept a notification for delivery."""
        templates = self._templates(call.app(request.app_id))
        notification = convert.new_notification(request, call, templates, self._clock.now())
        return convert.accepted(await self._push.send(notification, request.request_id, content_hash(request)))

    async def GetNotification(self, request: pb.GetNotificationRequest, call: Call) -> Message:
        """Return a notification with the count of its deliveries in each state."""
        app_id, notification_id = call.app(request.app_id), uuid_text(request.notification_id, "notification_id")
        return convert.notification(await self._push.notification(app_id, notification_id))

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, call: Call) -> Message:
        """List the deliveries that match a filter, oldest first."""
        app_id, given = call.app(request.app_id), request.filter
        wanted = convert.delivery_filter(given)
        page = Page.of(request, call, app_id, given.notification_id, given.user_id, given.device_id, str(given.state))
        after = uuid_text(page.after, "page_token") if page.after else None
        found = await self._push.deliveries(app_id, wanted, after, page.limit)
        return convert.delivery_list(*page.split(found, lambda delivery: delivery.delivery_id))

    async def WatchDeliveries(self, request: pb.WatchDeliveriesRequest, call: Call) -> AsyncGenerator[bytes, None]:
        """Stream the deliveries of a notification or a user as they change."""
        pages = self._watches.watch(call.app(request.app_id), convert.watch_filter(request))
        try:
            async for page in pages:
                for delivery in page:
                    message = convert.delivery_message(delivery)
                    yield pb.WatchDeliveriesResponse(delivery=message).SerializeToString()
        finally:
            await pages.aclose()

    async def AcknowledgeDelivery(self, request: pb.AcknowledgeDeliveryRequest, call: Call) -> Message:
        """Record that a device has received or opened a push."""
        opened = request.kind == pb.ACKNOWLEDGE_KIND_OPENED
        state = await self._push.acknowledge(request.ack_token, opened=opened)
        return pb.AcknowledgeDeliveryResponse(state=convert.state_number(state))

    async def CancelNotification(self, request: pb.CancelNotificationRequest, call: Call) -> Message:
        """Cancel the deliveries of a notification that have not been sent."""
        app_id, notification_id = call.app(request.app_id), uuid_text(request.notification_id, "notification_id")
        return pb.CancelNotificationResponse(cancelled_count=await self._push.cancel(app_id, notification_id))

    async def RedriveDeliveries(self, request: pb.RedriveDeliveriesRequest, call: Call) -> Message:
        """Send dead deliveries again."""
        app_id, wanted = call.app(request.app_id), convert.redrive_filter(request.filter)
        count, replayed = await self._push.redrive(
            app_id, call.caller, wanted, request.request_id, content_hash(request)
        )
        return pb.RedriveDeliveriesResponse(redriven_count=count, replayed=replayed)
