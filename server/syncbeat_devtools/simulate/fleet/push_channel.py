"""The push channel to a simulated device: which wake-ups arrive, when, and how many its system admits."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from syncbeat_devtools.simulate.fleet.devices import DAY, strata
from syncbeat_server.push.policy.wake_budget import wake_budget

_GROUPS = 10

ANDROID, IOS = "ANDROID", "IOS"


@dataclass(frozen=True, slots=True)
class PushConditions:
    """Conditions of the fleet's pushes, streams and systems. Shares are fractions of 1, times are in seconds."""

    reach: float = 0.85
    """Share of devices that pushes reach at all. Pushes to the others are lost without notice."""
    loss: float = 0.05
    """Share of pushes to reachable devices that are lost, independently."""
    dark: float = 0.0
    """Share of the time in which everything sent to a device is lost, because it sleeps or has no network."""
    dark_spell_s: float = 1800.0
    latency_s: float = 2.0
    latency_sigma: float = 1.0
    """The latency of a push is log-normal: `latency_s` is its median, this the sigma of its logarithm."""
    ios: float = 0.3
    """Share of devices with iOS, which admits a few pushes per hour in the background, none of them sent again."""
    watched: float = 1.0
    """Share of sessions in which the device's own app is in the foreground, with a stream open."""
    watched_after_s: float = 10.0
    """Time from the start of a session until the app comes to the foreground."""
    window_s: float = 0.0
    """The `dedupe_window` of the backend's triggers: within it of a push, the next one waits for its end."""
    stream_s: float = 0.2
    """Latency of a change through a stream."""
    unreached_stream: bool = True
    """True if devices that pushes do not reach open streams too, as our client does on any device in the foreground."""
    android_floor_s: float = 0.0
    ios_floor_s: float = 0.0
    """Shortest interval at which the system lets an app in the background poll (Doze; iOS)."""

    def floor_s(self, platform: str) -> float:
        """Return the shortest time between two polls in the background."""
        return self.ios_floor_s if platform == IOS else self.android_floor_s


DEFAULT_CONDITIONS = PushConditions()


@dataclass(frozen=True, slots=True)
class Handset:
    """The true properties of one device, independent of the server's beliefs."""

    platform: str
    reachable: bool
    dark: tuple[tuple[float, float], ...]


def handset(conditions: PushConditions, seed: int, index: int, sample: int) -> Handset:
    """Return the handset of the device `index`.

    A property that a share of the fleet has is given to the same share of the sample's active feeds.
    """
    reachable = not _in_systematic_sample(1.0 - conditions.reach, seed, index, sample)
    ios = strata(seed, "ios", sample)[index] < round(conditions.ios * sample)
    chance = random.Random(f"dark:{seed}:{index}")
    spells: list[tuple[float, float]] = []
    if conditions.dark > 0.0:
        between = conditions.dark_spell_s * (1.0 - conditions.dark) / conditions.dark
        at = chance.expovariate(1.0 / between) - (conditions.dark_spell_s if chance.random() < conditions.dark else 0.0)
        while at < DAY:
            end = at + chance.expovariate(1.0 / conditions.dark_spell_s)
            spells.append((at, end))
            at = end + chance.expovariate(1.0 / between)
    return Handset(IOS if ios else ANDROID, reachable, tuple(spells))


def _in_systematic_sample(share: float, seed: int, index: int, sample: int) -> bool:
    """Tell if the device is in a systematic sample of this share, taken of all devices in the order of their rates."""
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


class PushChannel:
    """Sends pushes to one handset."""

    def __init__(self, conditions: PushConditions, device: Handset, chance: random.Random) -> None:
        self._conditions, self._device, self._chance = conditions, device, chance
        self._dark = list(reversed(device.dark))
        budget = wake_budget(device.platform)
        self._most, self._refill_s = (math.inf, 1.0) if budget is None else (budget.burst, budget.refill_s)
        self._tokens, self._counted_at = self._most, 0.0

    def next_allowed_at(self, now: float) -> float:
        """Return the time at which the system admits the next push: `now` or later."""
        self._tokens = min(self._most, self._tokens + (now - self._counted_at) / self._refill_s)
        self._counted_at = now
        return now if self._tokens >= 1.0 else now + (1.0 - self._tokens) * self._refill_s

    def send(self, now: float) -> float | None:
        """Return the time at which a push that is sent now arrives; None if it is lost."""
        self._tokens -= 1.0
        conditions = self._conditions
        # Drawn in any case, so that a lost push does not shift later random numbers.
        lost = self._chance.random() < conditions.loss
        latency = conditions.latency_s * math.exp(conditions.latency_sigma * self._chance.gauss(0.0, 1.0))
        while self._dark and self._dark[-1][1] <= now:
            self._dark.pop()
        if not self._device.reachable or lost or (self._dark and self._dark[-1][0] <= now):
            return None
        return now + latency
