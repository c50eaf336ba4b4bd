"""Decides when a device should ask again, from what is known of scopes, devices and apps. Pure."""

from syncbeat_server.sync.policy.hint import Situation, decide, decide_interval, heads_of, tier
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING, Tuning
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.policy.scope_signal import signal_after_change

__all__ = [
    "DEFAULT_TUNING",
    "Prior",
    "Situation",
    "Tuning",
    "decide",
    "decide_interval",
    "heads_of",
    "signal_after_change",
    "tier",
]
