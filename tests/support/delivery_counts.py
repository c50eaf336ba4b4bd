"""Counts deliveries by state, as a backend can tell."""

from __future__ import annotations

from syncbeat import SyncbeatClient
from syncbeat.v1 import push_service_pb2


async def states(backend: SyncbeatClient) -> dict[str, int]:
    """Return how many deliveries are in each state."""
    counts: dict[str, int] = {}
    token = ""
    while True:
        answer = await backend.push.ListDeliveries(
            push_service_pb2.ListDeliveriesRequest(page_size=1000, page_token=token)
        )
        for delivery in answer.deliveries:
            name = push_service_pb2.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")
            counts[name] = counts.get(name, 0) + 1
        token = answer.next_page_token
        if not token:
            return counts
