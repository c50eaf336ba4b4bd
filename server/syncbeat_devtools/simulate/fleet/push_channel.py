"""What can be done to a device from outside: which wake-ups arrive, when, and what its system lets through."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from syncbeat_devtools.simulate.fleet.devices import DAY, strata
from syncbeat_server.push.policy.quiet_hours import wake_budget

_GROUPS = 10

ANDROID, IOS = "ANDROID", "IOS"


@dataclass(frozen=True, slots=True)
class Waking:
    """The fleet's pushes, streams and systems. Shares are of 1, times in seconds."""

    reach: float = 0.85
    """Of devices, those that pushes reach at all. A push to the others is lost, and nobody is told."""
    loss: float = 0.05
    """Of pushes to a device that they reach, those that get lost, each by its own chance."""
    dark: float = 0.0
    """Of the time, that in which everything sent to a device is lost: it sleeps, or is out of reach of any network."""
    dark_spell_s: float = 1800.0
    latency_s: float = 2.0
    latency_sigma: float = 1.0
    """A push takes a log-normal time: its median, and the sigma of its logarithm."""
    ios: float = 0.3
    """Of devices, those with iOS: a few pushes an hour in the background, none of them sent again."""
    watched: float = 1.0
    """Of sessions, those in which the device's own app is in the foreground, with a stream open."""
    watched_after_s: float = 10.0
    """Into a session, when the app comes to the foreground."""
    window_s: float = 0.0
    """The `dedupe_window` of the backend's triggers: after one, the next push goes out when it is over."""
    stream_s: float = 0.2
    """What a change takes through a stream."""
    unreached_stream: bool = True
    """Whether a device that pushes do not reach opens streams, as our client does on any device in the foreground."""
    android_floor_s: float = 0.0
    ios_floor_s: float = 0.0
    """In the background the system wakes an app no more often than this for polls of its own (Doze; iOS)."""

    def floor_s(self, platform: str) -> float:
        """The shortest time between two polls in the background."""
        return self.ios_floor_s if platform == IOS else self.android_floor_s


DEFAULT_WAKING = Waking()


@dataclass(frozen=True, slots=True)
class Handset:
    """What is true of one device, whatever the server believes."""

    platform: str
    reachable: bool
    dark: tuple[tuple[float, float], ...]


def handset(waking: Waking, seed: int, index: int, sample: int) -> Handset:
    """The device `index`. What is true of a share of the fleet is so of the same share of the sample's lively feeds."""
    reachable = not _chosen(1.0 - waking.reach, seed, index, sample)
    ios = strata(seed, "ios", sample)[index] < round(waking.ios * sample)
    chance = random.Random(f"dark:{seed}:{index}")
    spells: list[tuple[float, float]] = []
    if waking.dark > 0.0:
        between = waking.dark_spell_s * (1.0 - waking.dark) / waking.dark
        at = chance.expovariate(1.0 / between) - (waking.dark_spell_s if chance.random() < waking.dark else 0.0)
        while at < DAY:
            end = at + chance.expovariate(1.0 / waking.dark_spell_s)
            spells.append((at, end))
            at = end + chance.expovariate(1.0 / between)
    return Handset(IOS if ios else ANDROID, reachable, tuple(spells))


def _chosen(share: float, seed: int, index: int, sample: int) -> bool:
    """Whether it is one of a systematic sample of this share, of all devices in the order of their rates."""
    rank = _ranks(seed, sample)[index]
    offset = random.Random(f"chosen:{seed}").random()
    return math.floor((rank + 1) * share + offset) > math.floor(rank * share + offset)


@lru_cache(maxsize=16)
def _ranks(seed: int, sample: int) -> list[int]:
    hot, cold = strata(seed, "hot", sample), strata(seed, "cold", sample)
    by_rates = sorted(range(sample), key=lambda index: (_GROUPS * cold[index] // sample, hot[index]))
    ranks = [0] * sample
    for rank, index in enumerate(by_rates):
        ranks[index] = rank
    return ranks


class Air:
    """Sends pushes to one handset."""

    def __init__(self, waking: Waking, device: Handset, chance: random.Random) -> None:
        self._waking, self._device, self._chance = waking, device, chance
        self._dark = list(reversed(device.dark))
        budget = wake_budget(device.platform)
        self._most, self._refill_s = (math.inf, 1.0) if budget is None else (budget.most, budget.refill_s)
        self._tokens, self._counted_at = self._most, 0.0

    def free_at(self, now: float) -> float:
        """When the system lets the next push through: `now`, or later."""
        self._tokens = min(self._most, self._tokens + (now - self._counted_at) / self._refill_s)
        self._counted_at = now
        return now if self._tokens >= 1.0 else now + (1.0 - self._tokens) * self._refill_s

    def send(self, now: float) -> float | None:
        """When a push that is sent now arrives; None: it gets lost."""
        self._tokens -= 1.0
        waking = self._waking
        # Drawn in any case, so that a lost push moves nothing else.
        lost = self._chance.random() < waking.loss
        latency = waking.latency_s * math.exp(waking.latency_sigma * self._chance.gauss(0.0, 1.0))
        while self._dark and self._dark[-1][1] <= now:
            self._dark.pop()
        if not self._device.reachable or lost or (self._dark and self._dark[-1][0] <= now):
            return None
        return now + latency
