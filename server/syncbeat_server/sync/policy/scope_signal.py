"""Updates what a scope's row holds of its changes with each commit, and reads it with each hint. Pure."""

from __future__ import annotations

from syncbeat_server.sync.model import Belief, Signal, Windows
from syncbeat_server.sync.policy.belief import Outlook, after_change, after_evidence, after_silence, expected
from syncbeat_server.sync.policy.comparison_policies import windows_after_change
from syncbeat_server.sync.policy.scope_prior import Prior, initial_belief

_WRITER_ARRIVED, _WRITER_LEFT = 10.0, 0.3  # likelihood of a hot scope over that of a cold one


def initial_signal(born: float) -> Signal:
    """Return the signal of a scope created at `born`."""
    return Signal(None, Windows(0.0, 0.0, born, born))


def current_belief(signal: Signal, prior: Prior) -> Belief:
    """Return the belief as of the last change or the last arrival or departure of a writer, whichever is later."""
    belief = signal.belief or initial_belief(prior, signal.windows.at)
    if signal.presence_at <= belief.at:
        return belief
    silent = after_silence(belief, prior, signal.presence_at)
    return after_evidence(silent, _WRITER_ARRIVED if signal.present else _WRITER_LEFT)


def signal_after_change(signal: Signal, prior: Prior, now: float) -> Signal:
    """Return the signal after a commit at `now`."""
    belief = after_change(current_belief(signal, prior), prior, now)
    return signal._replace(belief=belief, windows=windows_after_change(signal.windows, now))


def signal_outlook(signal: Signal, prior: Prior, now: float) -> Outlook:
    """Return the expected change rate from `now` on."""
    return Outlook(*signal_expected(signal, prior, now), prior.start_per_s + prior.end_per_s)


def signal_expected(signal: Signal, prior: Prior, now: float) -> tuple[float, float]:
    """Return the level and the swing of the outlook from `now` on."""
    belief = signal.belief
    if belief is None or signal.presence_at > belief[5]:
        belief = current_belief(signal, prior)
    return expected(belief, prior, now)
