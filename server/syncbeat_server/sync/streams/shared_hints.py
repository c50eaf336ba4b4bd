"""Decides hints for streams, once for those that follow the same scopes in the same way at about the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from syncbeat_server.clock import Clock
from syncbeat_server.sync import policy
from syncbeat_server.sync.model import Activity, Hint, ScopeState
from syncbeat_server.sync.policy import Situation, Tuning

_KEEP_S = 1.0  # a hint moves by less than its rounding within it
_MAX_SCOPES = 8  # of streams with more hardly any two have the same, and a key costs as much as it saves
_MAX_HINTS = 1_000


class SharedHints:
    """Keeps the hints of the last second by all that they are decided by, the moment excepted."""

    def __init__(self, clock: Clock, tuning: Callable[[str], Tuning], size: int = _MAX_HINTS) -> None:
        """`tuning(app)` returns the policy inputs of an app; `size`: the hints kept at most."""
        self._clock = clock
        self._tuning = tuning
        self._size = size
        self._hints: dict[tuple[str, tuple[ScopeState, ...], Activity, bool], Hint] = {}
        self._ends_at = 0.0

    def hint(self, app_id: str, states: Sequence[ScopeState], activity: Activity, *, more_scopes: bool) -> Hint:
        """Return the hint of a stream that follows scopes in these states."""
        if len(states) > _MAX_SCOPES:
            return self._decide(app_id, states, activity, more_scopes=more_scopes)
        now = self._clock.monotonic()
        if now >= self._ends_at or len(self._hints) >= self._size:
            self._hints.clear()
            self._ends_at = now + _KEEP_S
        key = app_id, tuple(states), activity, more_scopes
        hint = self._hints.get(key)
        if hint is None:
            hint = self._hints[key] = self._decide(app_id, states, activity, more_scopes=more_scopes)
        return hint

    def _decide(self, app_id: str, states: Sequence[ScopeState], activity: Activity, *, more_scopes: bool) -> Hint:
        situation = Situation(list(states), activity, more_scopes=more_scopes)
        return policy.decide(situation, self._tuning(app_id), self._clock.now().timestamp(), changed=False)
