"""Callers on bare gRPC channels, without retries and policies, that keep what they were told of each call."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from syncbeat.v1 import core_pb2, push_service_pb2, push_service_pb2_grpc, sync_service_pb2, sync_service_pb2_grpc

_TIMEOUT_S = 8.0
# Each has connections of its own.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100))
_PAUSE_S = 0.002


@dataclass
class Told:
    """Keeps the answers of one caller: of each mutation, by its key, and the count of each kind of call and status.

    `statuses` counts (kind of call, status and text).
    """

    accepted: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, kind: str, error: grpc.RpcError | None, key: str = "") -> None:
        """Note how a call ended; one with a key has changed something if it was carried out."""
        self.statuses[kind, "OK" if error is None else _status(error)] += 1
        if key:
            (self.accepted if error is None else self.failed).add(key)


def merged(tallies: list[Told]) -> Told:
    """Return what all of them were told."""
    whole = Told()
    for told in tallies:
        whole.accepted |= told.accepted
        whole.failed |= told.failed
        whole.statuses += told.statuses
    return whole


def _status(error: Any) -> str:
    text = str(error.details() or "")
    # Addresses and errnos differ: the kind of it counts.
    for known in ("Socket closed", "Connection reset", "Connection refused", "GOAWAY", "RST_STREAM", "Broken pipe"):
        if known in text:
            text = known
    return f"{error.code().name}: {text[:80]}" if text else str(error.code().name)


def _mutations(name: str, user_id: str, scope: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (kind, key, request) for ever: mutations without a request_id, which nothing makes safe to repeat."""
    number = 0
    while True:
        key = f"{name}-{number}"
        number += 1
        if number % 4:
            change = core_pb2.NewChange(scope=scope, key=key, merge_patch_json="1")
            yield "PublishChanges", key, sync_service_pb2.PublishChangesRequest(changes=[change])
        else:
            shown, users = core_pb2.Notification(title=key), core_pb2.UserIds(ids=[user_id])
            yield "SendNotification", key, push_service_pb2.SendNotificationRequest(notification=shown, user_ids=users)


async def call_for_ever(address: str, token: str, name: str, over: asyncio.Event) -> Told:
    """Mutate and poll over a bare channel of grpc.aio until it is over, one call at a time."""
    told, metadata = Told(), (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        stubs: dict[str, Any] = {
            "PublishChanges": sync_service_pb2_grpc.SyncServiceStub(channel).PublishChanges,
            "SendNotification": push_service_pb2_grpc.PushServiceStub(channel).SendNotification,
        }
        poll: Any = sync_service_pb2_grpc.SyncServiceStub(channel).GetHint
        for kind, key, request in _mutations(name, "ann", "scope"):
            if over.is_set():
                break
            for what, call, asked, named in (
                (kind, stubs[kind], request, key),
                ("GetHint", poll, sync_service_pb2.GetHintRequest(user_id="ann", device_id="phone"), ""),
            ):
                try:
                    await call(asked, timeout=_TIMEOUT_S, metadata=metadata)
                except grpc.RpcError as error:
                    told.add(f"aio {what}", error, named)
                    await asyncio.wait({asyncio.ensure_future(over.wait())}, timeout=_PAUSE_S)
                else:
                    told.add(f"aio {what}", None, named)
    return told


def call_in_thread(address: str, token: str, name: str, over: threading.Event) -> Told:
    """Do as `call_for_ever` over a blocking channel; for a thread of its own."""
    told, metadata = Told(), (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address, options=_OPTIONS) as channel:
        publish: Any = sync_service_pb2_grpc.SyncServiceStub(channel).PublishChanges
        send: Any = push_service_pb2_grpc.PushServiceStub(channel).SendNotification
        for kind, key, request in _mutations(name, "ann", "scope"):
            if over.is_set():
                break
            call: Callable[..., Any] = publish if kind == "PublishChanges" else send
            try:
                call(request, timeout=_TIMEOUT_S, metadata=metadata)
            except grpc.RpcError as error:
                told.add(f"blocking {kind}", error, key)
                over.wait(_PAUSE_S)
            else:
                told.add(f"blocking {kind}", None, key)
    return told


async def stream_for_ever(address: str, token: str, over: asyncio.Event) -> Told:
    """Watch hints over a bare channel, opening the next stream when one ends; counts the last event of each."""
    told, metadata = Told(), (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        watch: Any = sync_service_pb2_grpc.SyncServiceStub(channel).WatchHints
        while not over.is_set():
            call = watch(sync_service_pb2.WatchHintsRequest(user_id="ann", device_id="phone"), metadata=metadata)
            ended = asyncio.ensure_future(_last_event(call))
            waiting = asyncio.ensure_future(over.wait())
            await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not ended.done():
                call.cancel()
                ended.cancel()
                break
            told.statuses["aio WatchHints", ended.result()] += 1
    return told


async def _last_event(call: Any) -> str:
    last = "nothing"
    try:
        async for event in call:
            last = str(event.WhichOneof("event"))
    except grpc.RpcError as error:
        return f"{_status(error)}, after {last}"
    return f"OK, after {last}"
