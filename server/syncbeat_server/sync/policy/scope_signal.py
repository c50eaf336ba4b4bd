"""What is known of a scope's changes, as its row keeps it: updated with each commit, read with each hint. Pure."""

from __future__ import annotations

from syncbeat_server.sync.model import Belief, Signal, Windows
from syncbeat_server.sync.policy.baselines import windows_after_change
from syncbeat_server.sync.policy.belief import (
    Outlook,
    Prior,
    advanced,
    after_change,
    after_evidence,
    expected,
    fresh,
)

_WRITER_CAME, _WRITER_LEFT = 10.0, 0.3  # how much likelier of a hot scope than of a cold one


def unchanged(born: float) -> Signal:
    """The signal of a scope made at `born`."""
    return Signal(None, Windows(0.0, 0.0, born, born))


def current_belief(signal: Signal, prior: Prior) -> Belief:
    """The belief as of the last change or the last that was heard of a writer, whichever is later."""
    belief = signal.belief or fresh(prior, signal.windows.at)
    if signal.presence_at <= belief.at:
        return belief
    seen = advanced(belief, prior, signal.presence_at)
    return after_evidence(seen, _WRITER_CAME if signal.present else _WRITER_LEFT)


def signal_after_change(signal: Signal, prior: Prior, now: float) -> Signal:
    """The signal after a commit at `now`."""
    belief = after_change(current_belief(signal, prior), prior, now)
    return signal._replace(belief=belief, windows=windows_after_change(signal.windows, now))


def signal_outlook(signal: Signal, prior: Prior, now: float) -> Outlook:
    """The expected change rate from `now` on."""
    return Outlook(*signal_expected(signal, prior, now), prior.start_per_s + prior.end_per_s)


def signal_expected(signal: Signal, prior: Prior, now: float) -> tuple[float, float]:
    """The level and the swing of the outlook from `now` on."""
    belief = signal.belief
    if belief is None or signal.presence_at > belief[5]:
        belief = current_belief(signal, prior)
    return expected(belief, prior, now)
