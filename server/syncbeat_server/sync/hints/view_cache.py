"""What hints are made of, kept in memory: a view for each device, and the scopes that these share.

Wake-ups say what is so no longer. They can be lost, so `sweep.ViewSweep` looks at what changed, and whatever nobody has
looked at for `TRUSTED_S` is forgotten. While wake-ups cannot arrive at all, nothing is believed, and each call reads.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import MAX_SCOPES
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import DeviceKey, ScopeKey, ScopeState
from syncbeat_server.sync.policy import heads_of
from syncbeat_server.sync.store import changes
from syncbeat_server.sync.store.changes import DeviceView
from syncbeat_server.sync.store.invalidations import UserKey

TRUSTED_S = 8.0
MOST_SCOPES_EACH = 5
"""How many scopes a view may have on the average; with more of them fewer views are kept."""
_FEW = 32
_USUAL_SCOPES = 100
"""Most views have no more. Those that have are read apart, so that nobody waits for 2,000 rows of each of others."""
_LARGE_AT_ONCE = 8
_MOST_LARGE = 10_000
_KEPT_S = 600.0  # how far pushes reach is not told each time


class _Slot:
    """A scope that kept views have. Its state is None when it is so no longer; `views` counts them."""

    __slots__ = ("state", "views")

    def __init__(self) -> None:
        self.state: ScopeState | None = None
        self.views = 0


class _Kept:
    """The view of a device as it was put together last, from these states of its scopes, and where they stand now."""

    __slots__ = ("ends_at", "slots", "states", "view")

    def __init__(self, view: DeviceView, slots: dict[str, _Slot], ends_at: float) -> None:
        self.view = view
        self.states: list[ScopeState | None] = []
        self.slots = slots
        self.ends_at = ends_at


class _Reading:
    """A read under way, and what was told meanwhile: what it finds of that may be older."""

    __slots__ = ("everything", "scopes", "users")

    def __init__(self) -> None:
        self.everything = False
        self.scopes: set[ScopeKey] = set()
        self.users: set[UserKey] = set()


class Views:
    """The views of devices, read many at once; at most `size` are kept, those unused for longest go first."""

    def __init__(self, database: Database, clock: Clock, listening: Callable[[], bool], size: int) -> None:
        """`listening()` says whether wake-ups arrive."""
        self._database = database
        self._clock = clock
        self._listening = listening
        self._size = size
        self._kept: OrderedDict[DeviceKey, _Kept] = OrderedDict()
        self._of_user: defaultdict[UserKey, set[DeviceKey]] = defaultdict(set)
        self._slots: dict[ScopeKey, _Slot] = {}
        self._slots_held = 0
        self._readings: set[_Reading] = set()
        self._trusted_until = clock.monotonic() + TRUSTED_S
        self._reads: Batcher[DeviceKey, DeviceView | None] = Batcher(self._read)
        self._large: OrderedDict[UserKey, None] = OrderedDict()
        self._large_reads: Batcher[DeviceKey, DeviceView | None] = Batcher(
            self._read_large, max_batch=_LARGE_AT_ONCE, lanes=1
        )
        self._renewals: Batcher[Sequence[ScopeKey], None] = Batcher(self._renew)

    def __len__(self) -> int:
        return len(self._kept)

    def cached(self, device: DeviceKey) -> DeviceView | None:
        """The view of a device, if it is known without asking anybody."""
        kept = self._believed(device)
        if kept is None:
            return None
        states = [slot.state for slot in kept.slots.values()]
        if states != kept.states:
            if None in states:
                return None
            kept.view, kept.states = _renewed(kept), states
        self._kept.move_to_end(device)
        return kept.view

    async def read(self, device: DeviceKey) -> DeviceView | None:
        """The view of a device, or None when it is not registered: of a kept one only what is so no longer is read.

        Raises:
            DependencyDown: the database does not answer.
        """
        kept = self._believed(device)
        if kept is not None:
            stale = [(device.app_id, name) for name, slot in kept.slots.items() if slot.state is None]
            if stale:
                await self._renewals.submit(stale)
                view = self.cached(device)
                if view is not None:
                    return view
        user = device.app_id, device.user_id
        if user not in self._large:
            view = await self._reads.submit(device)
            if view is None or not view.more_scopes:
                return view
            self._note_large(user)
        view = await self._large_reads.submit(device)
        if view is None or (len(view.scopes) <= _USUAL_SCOPES and not view.more_scopes):
            self._large.pop(user, None)
        return view

    def _note_large(self, user: UserKey) -> None:
        self._large[user] = None
        if len(self._large) > _MOST_LARGE:
            self._large.popitem(last=False)

    async def with_scopes(self, device: DeviceKey, view: DeviceView, named: Sequence[str]) -> DeviceView:
        """The view of a device whose user has more scopes than a view, with those of the named ones that are its.

        Raises:
            DependencyDown: the database does not answer.
        """
        more = [name for name in named if name not in view.scopes]
        if not more:
            return view
        async with self._database.connection() as conn:
            found = await changes.heads(conn, [(device.app_id, device.user_id, name) for name in more])
        return view._replace(scopes=view.scopes | {state.scope: state for state in found if state is not None})

    def scope_changed(self, app_id: str, scope: str) -> None:
        """The state of a scope is another."""
        slot = self._slots.get((app_id, scope))
        if slot is not None:
            slot.state = None
        for reading in self._readings:
            reading.scopes.add((app_id, scope))

    def user_changed(self, app_id: str, user_id: str) -> None:
        """A user joined or left a scope, or one of its devices is another."""
        for device in self._of_user.get((app_id, user_id), set()).copy():
            self._drop(device)
        for reading in self._readings:
            reading.users.add((app_id, user_id))

    def forget_all(self) -> None:
        """Wake-ups were lost: everything is read anew."""
        self._kept.clear()
        self._of_user.clear()
        self._slots.clear()
        self._slots_held = 0
        for reading in self._readings:
            reading.everything = True
        self._trusted_until = self._clock.monotonic() + TRUSTED_S

    def scopes(self) -> list[ScopeKey]:
        """The (app, scope) that some kept view has."""
        return list(self._slots)

    def looked_at(self, heads: Mapping[ScopeKey, tuple[str, int]], moment: float) -> None:
        """What is kept was held against the database at a (monotonic) moment: `heads` are those that moved of late."""
        for key, (epoch, head) in heads.items():
            slot = self._slots.get(key)
            state = None if slot is None else slot.state
            if state is not None and (state.epoch != epoch or state.head != head):
                self.scope_changed(*key)
        self._trusted_until = moment + TRUSTED_S

    def _believed(self, device: DeviceKey) -> _Kept | None:
        kept = self._kept.get(device)
        if kept is None or not self._listening():
            return None
        now = self._clock.monotonic()
        if now >= self._trusted_until:
            self.forget_all()
            return None
        return kept if now < kept.ends_at else None

    async def _read(self, devices: Sequence[DeviceKey]) -> Sequence[DeviceView | None]:
        return await self._read_up_to(_USUAL_SCOPES, devices)

    async def _read_large(self, devices: Sequence[DeviceKey]) -> Sequence[DeviceView | None]:
        return await self._read_up_to(MAX_SCOPES, devices)

    async def _read_up_to(self, most: int, devices: Sequence[DeviceKey]) -> Sequence[DeviceView | None]:
        # Hashing a key is not free: each is looked up once.
        places: dict[DeviceKey, int] = {}
        asked = [places.setdefault(device, len(places)) for device in devices]
        with self._reading() as reading:
            async with self._database.connection() as conn:
                found = await changes.device_views(conn, list(places), most)
            if self._listening() and not reading.everything:
                for device, view in zip(places, found, strict=True):
                    if view is not None and device[:2] not in reading.users and not view.more_scopes:
                        self._keep(device, view, reading)
        return [found[place] for place in asked]

    async def _renew(self, wanted: Sequence[Sequence[ScopeKey]]) -> Sequence[None]:
        keys = list({key for of_one in wanted for key in of_one})
        with self._reading() as reading:
            async with self._database.connection() as conn:
                states = await changes.heads(conn, [(app_id, None, scope) for app_id, scope in keys])
            for key, state in zip(keys, states, strict=True):
                slot = self._slots.get(key)
                if slot is not None and state is not None and not reading.everything:
                    _fill(slot, key, state, reading)
        return [None] * len(wanted)

    @contextmanager
    def _reading(self) -> Iterator[_Reading]:
        reading = _Reading()
        self._readings.add(reading)
        try:
            yield reading
        finally:
            self._readings.discard(reading)

    def _keep(self, device: DeviceKey, view: DeviceView, reading: _Reading) -> None:
        self._drop(device)
        slots = {}
        for name, state in view.scopes.items():
            key = device.app_id, name
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot()
            _fill(slot, key, state, reading)
            slot.views += 1
            slots[name] = slot
        self._kept[device] = _Kept(view, slots, self._clock.monotonic() + _KEPT_S)
        self._of_user[device[:2]].add(device)
        self._slots_held += len(slots)
        while len(self._kept) > self._size or self._slots_held > self._size * MOST_SCOPES_EACH:
            self._drop(next(iter(self._kept)))

    def _drop(self, device: DeviceKey) -> None:
        kept = self._kept.pop(device, None)
        if kept is None:
            return
        for name, slot in kept.slots.items():
            slot.views -= 1
            if not slot.views:
                del self._slots[device.app_id, name]
        self._slots_held -= len(kept.slots)
        devices = self._of_user[device[:2]]
        devices.discard(device)
        if not devices:
            del self._of_user[device[:2]]


def _renewed(kept: _Kept) -> DeviceView:
    scopes = {name: slot.state for name, slot in kept.slots.items() if slot.state is not None}
    if len(scopes) > _FEW:
        # As they are read: those that changed last come first.
        scopes = dict(sorted(scopes.items(), key=_changed_at, reverse=True))
    return kept.view._replace(scopes=scopes, heads=heads_of(scopes.values()))


def _changed_at(scope: tuple[str, ScopeState]) -> float:
    return scope[1].signal.windows.at


def _fill(slot: _Slot, key: ScopeKey, state: ScopeState, reading: _Reading) -> None:
    # Of two reads that overlap, the later to end may have begun earlier. Of two epochs nobody knows which is the newer
    # one: what is wrong is found by the sweep.
    kept = slot.state
    if key not in reading.scopes and (kept is None or kept.epoch != state.epoch or kept.head <= state.head):
        slot.state = state
