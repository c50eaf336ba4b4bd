"""Makes the hints of devices that ask: what is known of them, what the policy says of it, what is noted on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import FOREGROUND_S
from syncbeat_server.errors import AccessDenied
from syncbeat_server.sync import policy
from syncbeat_server.sync.hints.cursor_recorder import SeenRecorder
from syncbeat_server.sync.hints.view_cache import Views
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, FeedPage, Hint, Poll
from syncbeat_server.sync.policy import Situation, Tuning
from syncbeat_server.sync.store.changes import DeviceView
from syncbeat_server.sync.tuning.hint_recorder import Recorder

_NOTHING_REPORTED = Activity()
_IOS = "IOS"  # which lets nobody wake it again in the background


class Paces(Protocol):
    """Moves intervals to moments at which few others come: `pacer.Pacer`, or `policy.pacing.Pacing` of one process."""

    def paced(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """The interval to give to a device that will come by it."""
        ...

    def describe(self) -> str:
        """What pacing does now, for people."""
        ...


class Hints:
    """The hints of one process."""

    def __init__(
        self,
        views: Views,
        seen: SeenRecorder,
        recorder: Recorder,
        pacing: Paces,
        tuning: Callable[[str], Tuning],
        streaming: Callable[[DeviceKey], bool],
        clock: Clock,
    ) -> None:
        """`tuning` knows by what each app's hints are decided, `pacing` to which moment each is moved.

        `streaming` tells whether a device has a stream open here; `recorder` counts what came of the hints.
        """
        self._views = views
        self._seen = seen
        self._recorder = recorder
        self._pacing = pacing
        self._tuning = tuning
        self._streaming = streaming
        self._clock = clock

    def polled_at_once(self, poll: Poll) -> Hint | None:
        """As `polled`, where what it is made of is in memory; None: it has to be read.

        Raises:
            AccessDenied: as `polled`.
        """
        view = self._views.cached(poll.device)
        if view is None or not _covers(view, poll.cursors):
            return None
        return self._told(poll, view)

    async def polled(self, poll: Poll) -> Hint | None:
        """The hint for a device; None: it is not registered.

        Raises:
            AccessDenied: a cursor names a scope that its user is not a member of.
        """
        device = poll.device
        view = self._views.cached(device)
        if view is None or not _covers(view, poll.cursors):
            view = await self._views.read(device)
        if view is None:
            return None
        if view.more_scopes:
            view = await self._views.with_scopes(device, view, [cursor.scope for cursor in poll.cursors])
        return self._told(poll, view)

    async def listed(self, app_id: str, device: DeviceKey | None, cursor: Cursor, page: FeedPage) -> Hint:
        """The hint beside a page that followed `cursor`: of all scopes of the device, if it is one that we know.

        Who lists has polled before and comes by that hint, so that no moment is booked.
        """
        now = self._clock.now()
        situation = Situation([page.state], _NOTHING_REPORTED)
        if device is not None:
            self._recorder.fetched(device, now.timestamp(), [change.changed_at.timestamp() for change in page.changes])
            self._seen.note_fetched(device, [page.next])
            if not page.reset:
                self._seen.note(device, [cursor])
            view = self._views.cached(device) or await self._views.read(device)
            if view is not None:
                situation = self._situation(device, view, None, now.timestamp())
        return policy.decide(situation, self._tuning(app_id), now, changed=page.more)

    def _told(self, poll: Poll, view: DeviceView) -> Hint:
        device, cursors, activity, explain = poll
        changed = self._compare(device, view, cursors)
        now = self._clock.now()
        hint = self._paced(device, view, activity, now, changed=changed, explain=explain)
        self._recorder.polled(device, now.timestamp(), hint, view.scopes, cursors)
        return hint._replace(explanation=f"{hint.explanation}; {self._pacing.describe()}") if explain else hint

    def _situation(self, device: DeviceKey, view: DeviceView, activity: Activity | None, now: float) -> Situation:
        shown = activity or view.activity or _NOTHING_REPORTED
        woken_again = view.platform != _IOS or (shown.state is ActivityState.FOREGROUND and _on_screen(view, now))
        scopes, streaming = list(view.scopes.values()), self._streaming(device)
        return Situation(scopes, shown, view.reach, streaming, woken_again, view.more_scopes)

    def _paced(
        self,
        device: DeviceKey,
        view: DeviceView,
        activity: Activity | None,
        now: datetime,
        *,
        changed: bool,
        explain: bool,
    ) -> Hint:
        tuning, moment = self._tuning(device.app_id), now.timestamp()
        situation = self._situation(device, view, activity, moment)

        def pace(interval_s: float, background: bool) -> float:
            return self._pacing.paced(interval_s, background=background, now=moment, floor_s=tuning.bounds.floor_s)

        return policy.decide(situation, tuning, now, changed=changed, heads=view.heads, pace=pace, explain=explain)

    def _compare(self, device: DeviceKey, view: DeviceView, cursors: Sequence[Cursor]) -> bool:
        """Whether a scope is not where the device shows it. What that tells of the device is noted."""
        if not cursors:
            return any(state.head > 0 for state in view.scopes.values())
        moved = self._moved(device, view, cursors)
        if moved:
            self._seen.note_fetched(device, moved)
        return bool(moved)

    def _moved(self, device: DeviceKey, view: DeviceView, cursors: Sequence[Cursor]) -> list[Cursor]:
        """The heads that are not where their cursors are: ahead, in another epoch, or behind, since what is shown was
        lost with a restore."""
        moved = []
        for cursor in cursors:
            scope, epoch, sequence = cursor
            state = view.scopes.get(scope)
            if state is None:
                raise AccessDenied("not a member of this scope", scope=scope)
            if sequence is None or epoch not in ("", state.epoch):
                moved.append(state.cursor)
                continue
            if sequence != state.head:
                moved.append(state.cursor)
            if epoch and sequence <= state.head and _is_news(view.seen.get(scope), cursor, state.head):
                view.seen[scope] = cursor
                self._seen.note(device, [cursor])
        return moved


def _on_screen(view: DeviceView, now: float) -> bool:
    # What is sent again goes by reports alone: what a call says beside them is not kept.
    said = view.activity
    return said is not None and said.state is ActivityState.FOREGROUND and now < view.reported_at + FOREGROUND_S


def _is_news(seen: Cursor | None, cursor: Cursor, head: int) -> bool:
    if seen is None or seen.epoch != cursor.epoch:
        return True
    return not (cursor.sequence or 0) <= (seen.sequence or 0) <= head


def _covers(view: DeviceView, cursors: Sequence[Cursor]) -> bool:
    """Whether a view knows whatever the device does: else it is older than that, or the device is."""
    for scope, epoch, sequence in cursors:
        state = view.scopes.get(scope)
        if state is None or (sequence is not None and sequence > state.head):
            return False
        if epoch and not epoch.startswith(state.epoch):  # it may have a mark behind it (`resuming`)
            return False
    return True
