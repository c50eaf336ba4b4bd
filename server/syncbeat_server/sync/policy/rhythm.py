"""Holds what an app's scopes have in common over a week: when they change, and what no single belief foretells. Pure.

A belief (`belief.py`) knows one scope, at any hour. Two things it cannot know are learned of the app as a whole: how
much busier one hour of the week is than another, and for how long changes bring further ones beyond a session, which a
self-exciting process describes (Hawkes, "Spectra of some self-exciting and mutually exciting point processes", 1971):
each change raises the rate by `echo / LONG_S`, and that fades within `LONG_S`.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp
from typing import NamedTuple

from syncbeat_server.sync.model import Signal, Windows
from syncbeat_server.sync.policy.belief import Outlook
from syncbeat_server.sync.policy.comparison_policies import LONG_S
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.policy.scope_signal import signal_outlook

HOURS = 168
"""Hours of a week, which begins on Thursday at midnight UTC, as unix time does."""
HOUR_S = 3600.0

_DAY = 24
_ASSUMED_CHANGES = 50.0  # spread evenly over the day, added to the sampled ones
_ASSUMED_OF_DAY = 200.0  # changes of a day of the week, which are as many as of any other day


class Rhythm(NamedTuple):
    """Holds an app's rhythm. It is of all scopes together, so that it tells nothing about any one of them.

    `factors` are the change rates by the hour of the week, over the mean one; none before it is known. `echo` are the
    changes that one brings within hours, beyond what beliefs foresee.
    """

    factors: tuple[float, ...] = ()
    echo: float = 0.0


class WeekEvidence(NamedTuple):
    """Holds what a rhythm follows from: changes sampled in each hour of the week, in so many seconds of it.

    Both fade, so that an app that changes its ways is followed. `echo` is that of the rhythm.
    """

    changes: tuple[float, ...] = (0.0,) * HOURS
    seconds: tuple[float, ...] = (0.0,) * HOURS
    echo: float = 0.0


NO_RHYTHM = Rhythm()
NO_EVIDENCE = WeekEvidence()


@lru_cache(maxsize=1_000)  # of apps: each process asks for each every few seconds, and it changes once a day
def rhythm_of(evidence: WeekEvidence) -> Rhythm:
    """Return the rhythm: that of the day, smoothed over three hours, times that of the days of the week.

    A few days of evidence tell the hours of a day well and the days of a week badly, hence the two in turn.
    """
    changes, seconds, echo = evidence
    total, span_s = sum(changes), sum(seconds)
    if total <= 0.0 or span_s <= 0.0:
        return NO_RHYTHM._replace(echo=echo)
    mean, each = total / span_s, _ASSUMED_CHANGES / _DAY
    rough = [(sum(changes[h::_DAY]) + each) / (sum(seconds[h::_DAY]) + each / mean) for h in range(_DAY)]
    hours = [(rough[h - 1] + 2.0 * rough[h] + rough[(h + 1) % _DAY]) / 4.0 for h in range(_DAY)]
    factors: list[float] = []
    for first in range(0, HOURS, _DAY):
        expected = sum(rate * seconds[first + h] for h, rate in enumerate(hours))
        day = (sum(changes[first : first + _DAY]) + _ASSUMED_OF_DAY) / (expected + _ASSUMED_OF_DAY)
        factors += [day * rate for rate in hours]
    scale = HOURS / sum(factors)
    return Rhythm(tuple(scale * factor for factor in factors), echo)


def factor_at(factors: tuple[float, ...], now: float) -> float:
    """Return the change rate at `now` (unix seconds) over the mean one, on a line between the middles of hours."""
    if not factors:
        return 1.0
    hours = now / HOUR_S - 0.5
    hour = int(hours // 1.0)
    before = factors[hour % HOURS]
    return before + (factors[(hour + 1) % HOURS] - before) * (hours - hour)


def window_rate(windows: Windows, now: float) -> float:
    """Return the changes a second of the last hours: those that the long window still counts, over its length."""
    _, count, at, _ = windows
    elapsed = now - at
    return count / LONG_S if elapsed <= 0.0 else count * exp(-elapsed / LONG_S) / LONG_S


def at_this_hour(usual: tuple[float, float, float, float], busy: float) -> tuple[float, float, float, float]:
    """Return level and swing of all changes, and of delivered ones, in an hour so many times as busy as others.

    The hour says when sessions begin, and nothing of one that has begun: a swing above the level stays.
    """
    level, swing, delivered_level, delivered_swing = usual
    level *= busy
    delivered_level *= busy
    if swing < 0.0:
        swing *= busy
        delivered_swing *= busy
    # Scopes of which more is delivered may swing the other way than all do.
    left = level - delivered_level + swing
    return level, swing, delivered_level, min(left, delivered_swing)


def rhythmic_outlook(signal: Signal, prior: Prior, rhythm: Rhythm, now: float) -> Outlook:
    """Return the expected change rate of one scope from `now` on, in the app's rhythm."""
    level, swing, fade_per_s = signal_outlook(signal, prior, now)
    if rhythm.echo > 0.0:
        level += rhythm.echo * window_rate(signal.windows, now)
    if rhythm.factors:
        level, swing, _, _ = at_this_hour((level, swing, 0.0, 0.0), factor_at(rhythm.factors, now))
    return Outlook(level, swing, fade_per_s)
