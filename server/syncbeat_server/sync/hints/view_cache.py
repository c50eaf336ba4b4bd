"""Caches the inputs of hints in memory: one view per device, whose scope states are shared between views.

Change notifications invalidate entries. They can be lost, so `view_sweep.ViewSweep` compares the cache with the
database, and everything that was not compared for 8 s is dropped (`view_staleness`). While notifications cannot arrive
at all, the cache answers nothing, and each call reads the database.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.runtime.eviction_alarm import EvictionAlarm
from syncbeat_server.sync.hints.view_staleness import MAX_STALENESS_S, StalenessBound
from syncbeat_server.sync.model import DeviceKey, ScopeKey, ScopeState, UserKey
from syncbeat_server.sync.policy import heads_of
from syncbeat_server.sync.store.device_views import DeviceView

MAX_MEAN_SCOPES = 5
"""Scopes that a view may have on average; with more of them fewer views are kept."""
_FEW_SCOPES = 32
_MAX_AGE_S = 600.0  # changes of a device's push reach are not notified each time


class _ScopeSlot:
    """Holds the state of one scope for all cached views that have it; None once it is invalidated."""

    __slots__ = ("state", "views")

    def __init__(self) -> None:
        self.state: ScopeState | None = None
        self.views = 0


class _CachedView:
    """Holds a device's view as last assembled, the scope states it was assembled from, and the slots of its scopes."""

    __slots__ = ("expires_at", "slots", "states", "view")

    def __init__(self, view: DeviceView, slots: dict[str, _ScopeSlot], expires_at: float) -> None:
        self.view = view
        self.states: list[ScopeState | None] = []
        self.slots = slots
        self.expires_at = expires_at


class ViewRead:
    """Collects the invalidations that arrive during one read: its results for those may be outdated."""

    __slots__ = ("everything", "scopes", "users")

    def __init__(self) -> None:
        self.everything = False
        self.scopes: set[ScopeKey] = set()
        self.users: set[UserKey] = set()


class ViewCacheStats(NamedTuple):
    """Statistics of a view cache since its process started. `misses` are views that were read whole."""

    size: int
    hits: int
    misses: int
    evictions: int


class ViewCache:
    """Caches the views of at most `size` devices and evicts the least recently used first."""

    def __init__(
        self, clock: Clock, listening: Callable[[], bool], size: int, max_staleness_s: float = MAX_STALENESS_S
    ) -> None:
        """`listening()` returns whether change notifications of other processes can arrive."""
        self._clock = clock
        self._listening = listening
        self._size = size
        self._views: OrderedDict[DeviceKey, _CachedView] = OrderedDict()
        self._devices_of_user: defaultdict[UserKey, set[DeviceKey]] = defaultdict(set)
        self._slots: dict[ScopeKey, _ScopeSlot] = {}
        self._slot_uses = 0
        self._reads: set[ViewRead] = set()
        self._hits = self._misses = 0
        self._evicted = EvictionAlarm(clock, "views of devices", size)
        self._staleness = StalenessBound(clock, max_staleness_s)

    def __len__(self) -> int:
        return len(self._views)

    def get(self, device: DeviceKey) -> DeviceView | None:
        """Return the cached view of a device, reassembled if its scopes moved; None if any part has to be read."""
        cached = self._valid(device)
        if cached is None:
            return None
        states = [slot.state for slot in cached.slots.values()]
        if states != cached.states:
            if None in states:
                return None
            cached.view, cached.states = _reassembled(cached), states
        self._views.move_to_end(device)
        self._hits += 1
        return cached.view

    def stats(self) -> ViewCacheStats:
        """Return the statistics."""
        return ViewCacheStats(len(self._views), self._hits, self._misses, self._evicted.evictions)

    def invalidated_scopes(self, device: DeviceKey) -> list[ScopeKey]:
        """Return the scopes of a cached view whose states have to be read again; empty if no view is cached."""
        cached = self._valid(device)
        if cached is None:
            return []
        return [(device.app_id, name) for name, slot in cached.slots.items() if slot.state is None]

    def cached_scopes(self) -> list[ScopeKey]:
        """Return every (app, scope) that some cached view has."""
        return list(self._slots)

    def scope_changed(self, app_id: str, scope: str) -> None:
        """Invalidate the state of a scope."""
        slot = self._slots.get((app_id, scope))
        if slot is not None:
            slot.state = None
        for read in self._reads:
            read.scopes.add((app_id, scope))

    def user_changed(self, app_id: str, user_id: str) -> None:
        """Drop the views of a user's devices: its memberships or one of its devices changed."""
        for device in self._devices_of_user.get((app_id, user_id), set()).copy():
            self._drop(device)
        for read in self._reads:
            read.users.add((app_id, user_id))

    def invalidate_all(self) -> None:
        """Drop everything, because notifications were lost."""
        self._views.clear()
        self._devices_of_user.clear()
        self._slots.clear()
        self._slot_uses = 0
        for read in self._reads:
            read.everything = True
        self._staleness.restart()

    def confirm(self, heads: Mapping[ScopeKey, tuple[str, int]], moment: float) -> None:
        """Trust the cache anew as of a monotonic moment at which the database was compared with it.

        `heads` are the (epoch, head) of the scopes that moved recently; states that differ from them are invalidated.
        """
        for key, (epoch, head) in heads.items():
            slot = self._slots.get(key)
            state = None if slot is None else slot.state
            if state is not None and (state.epoch != epoch or state.head != head):
                self.scope_changed(*key)
        self._staleness.compared_at(moment)

    @contextmanager
    def reading(self) -> Iterator[ViewRead]:
        """Track the invalidations that arrive while the block reads the database."""
        read = ViewRead()
        self._reads.add(read)
        try:
            yield read
        finally:
            self._reads.discard(read)

    def put(self, device: DeviceKey, view: DeviceView, read: ViewRead) -> None:
        """Cache a view that was read, unless it was invalidated during the read."""
        self._misses += 1
        if not self._listening() or read.everything or device[:2] in read.users:
            return
        self._drop(device)
        slots = {}
        for name, state in view.scopes.items():
            key = device.app_id, name
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _ScopeSlot()
            _fill(slot, key, state, read)
            slot.views += 1
            slots[name] = slot
        self._views[device] = _CachedView(view, slots, self._clock.monotonic() + _MAX_AGE_S)
        self._devices_of_user[device[:2]].add(device)
        self._slot_uses += len(slots)
        while len(self._views) > self._size or self._slot_uses > self._size * MAX_MEAN_SCOPES:
            oldest = next(iter(self._views))
            self._evicted.record(is_valid=self._clock.monotonic() < self._views[oldest].expires_at)
            self._drop(oldest)

    def put_scope(self, key: ScopeKey, state: ScopeState, read: ViewRead) -> None:
        """Refresh the state of a scope that cached views have, unless it was invalidated during the read."""
        slot = self._slots.get(key)
        if slot is not None and not read.everything:
            _fill(slot, key, state, read)

    def _valid(self, device: DeviceKey) -> _CachedView | None:
        cached = self._views.get(device)
        if cached is None or not self._listening():
            return None
        now = self._clock.monotonic()
        if now >= self._staleness.expires_at:
            self.invalidate_all()
            return None
        return cached if now < cached.expires_at else None

    def _drop(self, device: DeviceKey) -> None:
        cached = self._views.pop(device, None)
        if cached is None:
            return
        for name, slot in cached.slots.items():
            slot.views -= 1
            if not slot.views:
                del self._slots[device.app_id, name]
        self._slot_uses -= len(cached.slots)
        devices = self._devices_of_user[device[:2]]
        devices.discard(device)
        if not devices:
            del self._devices_of_user[device[:2]]


def _reassembled(cached: _CachedView) -> DeviceView:
    scopes = {name: slot.state for name, slot in cached.slots.items() if slot.state is not None}
    if len(scopes) > _FEW_SCOPES:
        # In the order of a read: most recently changed first.
        scopes = dict(sorted(scopes.items(), key=_changed_at, reverse=True))
    return cached.view._replace(scopes=scopes, heads=heads_of(scopes.values()))


def _changed_at(scope: tuple[str, ScopeState]) -> float:
    return scope[1].signal.windows.at


def _fill(slot: _ScopeSlot, key: ScopeKey, state: ScopeState, read: ViewRead) -> None:
    # Of two overlapping reads, the one that ends later may have begun earlier, so a head never goes back here. Two
    # epochs cannot be ordered: a wrong one is found by the sweep.
    cached = slot.state
    if key not in read.scopes and (cached is None or cached.epoch != state.epoch or cached.head <= state.head):
        slot.state = state
