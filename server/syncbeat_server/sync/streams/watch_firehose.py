"""Serves WatchHints of all scopes of an app on this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.content.firehose_token import FeedPosition, InvalidToken, decode
from syncbeat_server.sync.model import DeviceKey, StreamEvent
from syncbeat_server.sync.store import firehose_pages
from syncbeat_server.sync.streams.drain_and_lifetime import Lifetime
from syncbeat_server.sync.streams.firehose_stream import FirehoseRequest, FirehoseStream
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.streams.subscription import Subscription


class Firehose:
    """Opens streams of whole apps."""

    def __init__(self, context: StreamContext, database: Database, listening: Callable[[], bool]) -> None:
        """`listening()` returns whether wake-ups of other processes can arrive."""
        self._context = context
        self._database = database
        self._listening = listening

    async def watch(self, request: FirehoseRequest) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of one stream, until the token expires, the process drains or half an hour is over.

        Raises:
            InvalidRequest: the resume token is not one of this app.
            NotFound: a cursor names a scope that does not exist.
            TokenExpired: the caller's access token expired.
            TokenRevoked: it was revoked.
        """
        given = _position_of(request)
        subscription = Subscription(DeviceKey(request.app_id, "", ""), all_scopes=True)
        self._context.hub.add(subscription)  # before anything is read: changes in between are found by the next look
        try:
            lifetime = Lifetime(self._context, subscription, request.expires_at, request.recheck)
            await lifetime.check()
            position = given or await self._current_position(request.app_id)
            stream = FirehoseStream(self._context, self._database, request, lifetime, position)
            async for event in stream.open():
                yield event
            async for event in stream.follow(self._listening):
                yield event
        finally:
            self._context.hub.remove(subscription)

    async def _current_position(self, app_id: str) -> FeedPosition:
        async with self._database.connection() as conn:
            feed = await firehose_pages.current_feed(conn, app_id)
        return FeedPosition(feed.name, feed.now, pruned=feed.pruned)


def _position_of(request: FirehoseRequest) -> FeedPosition | None:
    if not request.token:
        return None
    try:
        return decode(request.app_id, request.token)
    except InvalidToken as error:
        raise InvalidRequest(
            FieldViolation("token", "not a token that a checkpoint of this app carried", FieldReason.MALFORMED)
        ) from error
