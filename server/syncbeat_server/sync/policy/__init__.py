"""When should a device ask again? Pure: from what is known of scopes, devices and apps to a hint."""

from syncbeat_server.sync.policy.belief import Prior
from syncbeat_server.sync.policy.hint import Situation, decide, heads_of, reckon, tier
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING, Tuning
from syncbeat_server.sync.policy.scope_signal import signal_after_change

__all__ = [
    "DEFAULT_TUNING",
    "Prior",
    "Situation",
    "Tuning",
    "decide",
    "heads_of",
    "reckon",
    "signal_after_change",
    "tier",
]
