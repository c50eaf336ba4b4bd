"""A circuit breaker whose state the processes of a deployment share.

Failures are counted by each process, on its own traffic. A process whose breaker opens leaves its own traffic aside and
bears witness to that; the breaker of the fleet opens with the second witness, so that one process that is cut off
decides for itself alone. The fleet's trials are handed out by the shared state, a few at a time for all processes
together. Each opening, reopening and closing of the fleet is a generation: what was asked in an earlier one counts no
longer. Without the shared state each process goes by what it sees itself (ADR 144).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import NamedTuple, Protocol

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.resilience.breaker import Breaker, BreakerRule, BreakerState, Permit

_log = logging.getLogger(__name__)

# A trial that fails may be the fault of the process that made it: in the next round others come first.
_OTHERS_FIRST_S = 3.0
_ASK_AGAIN_S = 1.0
_MAX_UNSENT = 100  # the newest matter; those of earlier generations are ignored anyway


class Step(StrEnum):
    """The steps that a process takes in the shared state."""

    WITNESS = "witness"
    WITHDRAW = "withdraw"
    ACQUIRE = "acquire"
    SUCCEED = "succeed"
    FAIL = "fail"
    RELEASE = "release"


class FleetState(NamedTuple):
    """The shared state of one breaker. Generation 0: nothing is known of it.

    `age_s`: seconds since the generation began. `granted`: the step took effect, as a trial that was given out.
    """

    generation: int = 0
    is_open: bool = False
    age_s: float = 0.0
    granted: bool = False


class BreakerStates(Protocol):
    """Keeps the shared states. Each method raises DependencyDown while it cannot be reached."""

    async def version(self) -> int:
        """Return a number that changes whenever a state does."""
        ...

    async def read(self, names: Sequence[str]) -> Sequence[FleetState]:
        """Return the state of each breaker."""
        ...

    async def advance(self, name: str, step: Step, generation: int, mark: str, rule: BreakerRule) -> FleetState:
        """Take a step in a generation and return the state after it; `mark` names the witness or the trial."""
        ...


class BreakerObserver(Protocol):
    """Counts transitions (`ops.metrics`)."""

    def breaker_moved(self, dependency: str, state: str) -> None:
        """Count that a breaker before such a dependency has taken a state."""


class NoObserver:
    """Counts nothing."""

    def breaker_moved(self, dependency: str, state: str) -> None:
        """Ignore it."""


class _Message(NamedTuple):
    step: Step
    generation: int
    mark: str


class FleetBreaker:
    """The breaker of one dependency, as one process sees it. `sync` in the registry exchanges news with the fleet."""

    def __init__(
        self,
        name: str,
        rule: BreakerRule,
        clock: Clock,
        states: BreakerStates | None = None,
        observer: BreakerObserver | None = None,
        process: str = "",
    ) -> None:
        """`name` is `kind:subject`, whose kind is counted. Without `states` the process goes by itself."""
        self.name = name
        self.rule = rule
        self._clock = clock
        self._states = states
        self._observer = observer or NoObserver()
        self._process = process
        self._local = Breaker(rule, clock, self._moved)
        self._generation = 0
        self._of_fleet = self._others_first = self._by_news = False
        self._denied_until = self._others_first_until = float("-inf")
        self._trials = 0
        self._unsent: deque[_Message] = deque(maxlen=_MAX_UNSENT)
        self.on_news: Callable[[], None] = lambda: None
        """Called when the fleet is to be told of something: `send_news` does."""

    @property
    def state(self) -> BreakerState:
        """Return the current state."""
        return self._local.state

    @property
    def failures(self) -> int:
        """Return how many calls of this process failed in a row; while it is not closed, those that opened it."""
        return self._local.failures

    @property
    def last_opened_at(self) -> float | None:
        """Return the moment of the clock at which it last opened here; None: never."""
        return self._local.last_opened_at

    @property
    def free_permits(self) -> int | None:
        """Return how many calls may be admitted now; None: any number."""
        free = self._local.free_permits
        return 0 if free is not None and self.retry_in_s > 0 else free

    @property
    def retry_in_s(self) -> float:
        """Return the seconds until a call may be admitted; 0 if one may be now."""
        if self._local.state is BreakerState.CLOSED:
            return 0.0
        now = self._clock.monotonic()
        wait_s = self._local.retry_in_s
        if self._of_fleet and self._others_first:
            wait_s = max(wait_s, self._others_first_until - now)
        return max(wait_s, self._denied_until - now, 0.0)

    async def acquire(self) -> Permit | None:
        """Return a permit for one call, or None if no call is admitted now. A trial of the fleet asks the fleet."""
        if self.free_permits == 0:
            return None
        permit = self._local.acquire()
        if permit is None or self._states is None or not self._of_fleet:
            return permit
        self._trials += 1
        trial = _Message(Step.RELEASE, self._generation, f"{self._process}:{self._trials}")
        try:
            found = await self._states.advance(self.name, Step.ACQUIRE, trial.generation, trial.mark, self.rule)
        except DependencyDown:
            return permit
        except BaseException:  # cancelled
            permit.release()
            self._post(trial)  # it may have been given out
            raise
        if found.granted:
            permit.on_end = partial(self._trial_ended, trial)
            return permit
        if found.generation < self._generation:  # the shared state was lost
            self._of_fleet = False
            return permit
        permit.release()
        self.adopt(found)
        self._denied_until = self._clock.monotonic() + _ASK_AGAIN_S
        return None

    def adopt(self, found: FleetState, *, own: bool = False) -> None:
        """Follow the fleet into a newer generation; `own`: this process began it.

        An older one, or none, means that the shared state was lost: this process stays as it is.
        """
        if found.generation <= self._generation:
            return
        self._generation, self._of_fleet = found.generation, found.is_open
        self._others_first = own and found.is_open
        self._denied_until = float("-inf")
        self._by_news = True  # what follows is no discovery, which would be told again
        try:
            if found.is_open:
                left_s = max(0.0, self.rule.open_s - found.age_s)
                self._local.open_for(left_s)
                self._others_first_until = self._clock.monotonic() + left_s + _OTHERS_FIRST_S
            elif self._local.state is not BreakerState.CLOSED:
                self._local.close()
        finally:
            self._by_news = False

    async def send_news(self) -> None:
        """Tell the fleet what it does not know yet. What cannot be told is dropped: the next reopening tells it anew.

        Raises:
            DependencyDown: the shared state cannot be reached.
        """
        while self._unsent and self._states is not None:
            step, generation, mark = self._unsent.popleft()
            try:
                found = await self._states.advance(self.name, step, generation, mark, self.rule)
            except DependencyDown:
                self._unsent.clear()
                raise
            self.adopt(found, own=step is Step.FAIL and found.granted)

    def _trial_ended(self, trial: _Message, failed: bool | None) -> None:
        if not failed:  # a failure has been told as the transition that it is
            self._post(trial._replace(step=Step.RELEASE if failed is None else Step.SUCCEED))

    def _post(self, message: _Message) -> None:
        self._unsent.append(message)
        self.on_news()

    def _moved(self, state: BreakerState) -> None:
        self._observer.breaker_moved(self.name.partition(":")[0], state)
        level = logging.WARNING if state is BreakerState.OPEN else logging.INFO
        by = "other processes" if self._by_news else "own calls"
        _log.log(level, "a breaker is %s", state, extra={"breaker": self.name, "by": by})
        if self._by_news or self._states is None:
            return
        if state is BreakerState.OPEN:
            self._post(_Message(Step.FAIL if self._of_fleet else Step.WITNESS, self._generation, self._process))
        elif state is BreakerState.CLOSED and not self._of_fleet:
            self._post(_Message(Step.WITHDRAW, self._generation, self._process))
