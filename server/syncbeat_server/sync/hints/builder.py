"""Builds the hints of devices that ask: reads their views, lets the policy decide, and records what devices show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import FOREGROUND_S
from syncbeat_server.sync import policy
from syncbeat_server.sync.hints.cursor_comparison import covers, differing_heads
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.view_reader import ViewReader
from syncbeat_server.sync.model import Activity, ActivityState, Cursor, DeviceKey, FeedPage, Hint, Poll
from syncbeat_server.sync.policy import Situation, Tuning
from syncbeat_server.sync.store.device_views import DeviceView

_NOTHING_REPORTED = Activity()
_IOS = "IOS"  # which lets nobody wake an app again in the background


class IntervalPacer(Protocol):
    """Moves intervals to moments that few devices share: `LoadPacer`, or `LoadLeveler` within one process."""

    def pace(self, interval_s: float, *, background: bool, now: float, floor_s: float = 0.0) -> float:
        """Return the interval to give to a device, whose arrival is booked. `now` is in unix seconds."""
        ...

    def describe(self) -> str:
        """Describe the current pacing for people."""
        ...


class HintBuilder:
    """Builds the hints of one process."""

    def __init__(
        self,
        views: ViewReader,
        recorders: Recorders,
        pacer: IntervalPacer,
        tuning: Callable[[str], Tuning],
        is_streaming: Callable[[DeviceKey], bool],
        clock: Clock,
    ) -> None:
        """`tuning(app)` returns the policy inputs of an app; `is_streaming` if a device has a stream open here."""
        self._views = views
        self._cached_view = views.cache.get
        self._recorders = recorders
        self._record_shown = recorders.cursors.record_shown
        self._pacer = pacer
        self._tuning = tuning
        self._is_streaming = is_streaming
        self._clock = clock

    def try_for_poll(self, poll: Poll) -> Hint | None:
        """Return the hint as `for_poll` does if the view is cached; None if it has to be read.

        Raises:
            AccessDenied: as `for_poll`.
        """
        view = self._cached_view(poll.device)
        if view is None or not covers(view, poll.cursors):
            return None
        return self._build(poll, view)

    async def for_poll(self, poll: Poll) -> Hint | None:
        """Return the hint for a device that polls; None if it is not registered.

        Raises:
            AccessDenied: a cursor names a scope that its user is not a member of.
            DependencyDown: the database does not answer.
        """
        device = poll.device
        view = self._cached_view(device)
        if view is None or not covers(view, poll.cursors):
            view = await self._views.read(device)
        if view is None:
            return None
        if view.more_scopes:
            view = await self._views.with_scopes(device, view, [cursor.scope for cursor in poll.cursors])
        return self._build(poll, view)

    async def for_page(self, app_id: str, device: DeviceKey | None, cursor: Cursor, page: FeedPage) -> Hint:
        """Return the hint beside a page that follows `cursor`, from all scopes of the device if it is registered.

        No arrival is booked: a device that lists has polled before, and returns by that hint.
        """
        now = self._clock.now().timestamp()
        situation = Situation([page.state], _NOTHING_REPORTED)
        if device is not None:
            changed_at = [change.changed_at.timestamp() for change in page.changes]
            self._recorders.hints.record_fetch(device, now, changed_at)
            self._recorders.cursors.record_fetched(device, [page.next])
            if not page.reset:
                self._recorders.cursors.record_shown(device, [cursor])
            view = self._cached_view(device) or await self._views.read(device)
            if view is not None:
                situation = self._situation(device, view, None, now)
        return policy.decide(situation, self._tuning(app_id), now, changed=page.more)

    def _build(self, poll: Poll, view: DeviceView) -> Hint:
        device, cursors, activity, explain = poll
        changed = self._has_news(device, view, cursors)
        now = self._clock.now().timestamp()
        hint = self._decide(device, view, activity, now, changed=changed, explain=explain)
        self._recorders.hints.record_poll(device, now, hint, view.scopes, cursors)
        return hint._replace(explanation=f"{hint.explanation}; {self._pacer.describe()}") if explain else hint

    def _situation(self, device: DeviceKey, view: DeviceView, activity: Activity | None, now: float) -> Situation:
        shown = activity or view.activity or _NOTHING_REPORTED
        resendable = view.platform != _IOS or (shown.state is ActivityState.FOREGROUND and _is_on_screen(view, now))
        scopes, streaming = list(view.scopes.values()), self._is_streaming(device)
        return Situation(scopes, shown, view.reach, streaming, resendable, view.more_scopes)

    def _decide(
        self,
        device: DeviceKey,
        view: DeviceView,
        activity: Activity | None,
        now: float,
        *,
        changed: bool,
        explain: bool,
    ) -> Hint:
        tuning = self._tuning(device.app_id)
        situation = self._situation(device, view, activity, now)

        def pace(interval_s: float, background: bool) -> float:
            return self._pacer.pace(interval_s, background=background, now=now, floor_s=tuning.bounds.floor_s)

        return policy.decide(situation, tuning, now, changed=changed, heads=view.heads, pace=pace, explain=explain)

    def _has_news(self, device: DeviceKey, view: DeviceView, cursors: Sequence[Cursor]) -> bool:
        """Return True if some scope is not where the device shows it, and record what the cursors tell."""
        if not cursors:
            return any(state.head > 0 for state in view.scopes.values())
        differing = differing_heads(device, view, cursors, self._record_shown)
        if differing:
            self._recorders.cursors.record_fetched(device, differing)
        return bool(differing)


def _is_on_screen(view: DeviceView, now: float) -> bool:
    # By stored reports alone, as resends are decided: the activity that a call carries is not stored.
    reported = view.activity
    return reported is not None and reported.state is ActivityState.FOREGROUND and now < view.reported_at + FOREGROUND_S
