"""Reads cached views of devices, and moves heads that nobody is told of."""

from __future__ import annotations

from syncbeat_server.sync.model import Activity, ActivityState, DeviceKey
from syncbeat_server.sync.store.device_views import DeviceView
from tests.support.build import APP, PHONE, SyncFeature

TABLET = DeviceKey(APP, "ann", "tablet")
BOBS = DeviceKey(APP, "bob", "phone")
AWAY = Activity(ActivityState.BACKGROUND, idle_s=9.0)


async def read_view(sync: SyncFeature, device: DeviceKey = PHONE) -> tuple[int, DeviceView | None]:
    """Look a view up: how often the database is asked for it, and the view."""
    before = sync.held.asked
    view = sync.views.get(device) or await sync.view_reader.read(device)
    return sync.held.asked - before, view


async def heads(sync: SyncFeature, device: DeviceKey = PHONE) -> dict[str, int]:
    """Return the head of each scope of a device, as its view has it."""
    _, view = await read_view(sync, device)
    assert view is not None
    return {name: state.head for name, state in view.scopes.items()}


async def move_head(sync: SyncFeature, scope: str = "couple") -> None:
    """Publish, and tell nobody."""
    async with sync.database.connection() as conn:
        await conn.execute("UPDATE scopes SET head = head + 1, changed_at = syncbeat_now() WHERE scope = $1", scope)
