"""Reads the views of devices from the database in batches, and fills the view cache.

Users with very many scopes are read in batches of their own, so that the others in a batch do not wait for their rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.storage.batcher import Batcher, BatchRule
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.model import DeviceKey, ScopeKey, UserKey
from syncbeat_server.sync.store import device_views, member_scopes
from syncbeat_server.sync.store.device_views import DeviceView

_LARGE_BATCH = 8
_MAX_LARGE_USERS = 10_000


@dataclass(frozen=True)
class ViewLimits:
    """Numbers of scopes that one read brings of each user."""

    usual_scopes: int = 100
    """Scopes that are read of each user in a shared batch; users with more are read again, apart."""
    max_scopes: int = MAX_SCOPES


_LIMITS = ViewLimits()


class ViewReader:
    """Reads what the cache lacks. `cache` answers without a read what it holds."""

    def __init__(self, database: Database, cache: ViewCache, limits: ViewLimits = _LIMITS) -> None:
        self._limits = limits
        self.cache = cache
        self._database = database
        self._views: Batcher[DeviceKey, DeviceView | None] = Batcher(self._read_usual)
        self._large_users: OrderedDict[UserKey, None] = OrderedDict()
        self._large_views: Batcher[DeviceKey, DeviceView | None] = Batcher(
            self._read_large, BatchRule(max_batch=_LARGE_BATCH, lanes=1)
        )
        self._scopes: Batcher[Sequence[ScopeKey], None] = Batcher(self._read_scopes)

    async def read(self, device: DeviceKey) -> DeviceView | None:
        """Return the view of a device, re-reading only invalidated scopes; None if the device is unregistered.

        Raises:
            DependencyDown: the database does not answer.
        """
        invalidated = self.cache.invalidated_scopes(device)
        if invalidated:
            await self._scopes.submit(invalidated)
            view = self.cache.get(device)
            if view is not None:
                return view
        user = device.app_id, device.user_id
        if user not in self._large_users:
            view = await self._views.submit(device)
            if view is None or not view.more_scopes:
                return view
            self._mark_large(user)
        view = await self._large_views.submit(device)
        if view is None or (len(view.scopes) <= self._limits.usual_scopes and not view.more_scopes):
            self._large_users.pop(user, None)
        return view

    async def with_scopes(self, device: DeviceKey, view: DeviceView, named: Sequence[str]) -> DeviceView:
        """Return a view extended by those of the named scopes that its user is a member of.

        Needed where the user has more scopes than a view holds.

        Raises:
            DependencyDown: the database does not answer.
        """
        more = [name for name in named if name not in view.scopes]
        if not more:
            return view
        async with self._database.connection() as conn:
            found = await member_scopes.scope_states(conn, [(device.app_id, device.user_id, name) for name in more])
        return view._replace(scopes=view.scopes | {state.scope: state for state in found if state is not None})

    def _mark_large(self, user: UserKey) -> None:
        self._large_users[user] = None
        if len(self._large_users) > _MAX_LARGE_USERS:
            self._large_users.popitem(last=False)

    async def _read_usual(self, devices: Sequence[DeviceKey]) -> Sequence[DeviceView | None]:
        return await self._read(self._limits.usual_scopes, devices)

    async def _read_large(self, devices: Sequence[DeviceKey]) -> Sequence[DeviceView | None]:
        return await self._read(self._limits.max_scopes, devices)

    async def _read(self, max_scopes: int, devices: Sequence[DeviceKey]) -> Sequence[DeviceView | None]:
        # Hashing a key is not free: each is looked up once.
        places: dict[DeviceKey, int] = {}
        requested = [places.setdefault(device, len(places)) for device in devices]
        with self.cache.reading() as read:
            async with self._database.connection() as conn:
                found = await device_views.read_device_views(conn, list(places), max_scopes)
            for device, view in zip(places, found, strict=True):
                if view is not None and not view.more_scopes:
                    self.cache.put(device, view, read)
        return [found[place] for place in requested]

    async def _read_scopes(self, requested: Sequence[Sequence[ScopeKey]]) -> Sequence[None]:
        keys = list({key for of_one in requested for key in of_one})
        with self.cache.reading() as read:
            async with self._database.connection() as conn:
                states = await member_scopes.scope_states(conn, [(app_id, None, scope) for app_id, scope in keys])
            for key, state in zip(keys, states, strict=True):
                if state is not None:
                    self.cache.put_scope(key, state, read)
        return [None] * len(requested)
