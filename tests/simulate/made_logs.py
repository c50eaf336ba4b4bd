"""Makes small logs of messages: pairs of users who talk in bursts."""

from __future__ import annotations

import random
from pathlib import Path

from syncbeat_devtools.simulate.fleet.devices import DAY

START = 20_000 * DAY
"""Midnight UTC, in unix seconds."""

Message = tuple[float, str, str]
"""Seconds since the start of the log, the sender, and the receiver."""


def talk(days: int, users: int, seed: int) -> list[Message]:
    """Return messages of conversations at random moments, in order of time."""
    chance = random.Random(seed)
    messages: list[Message] = [(0.0, "u0", "u1"), (days * DAY - 1.0, "u0", "u1")]
    for _ in range(users * days * 5):
        one, other = chance.sample(range(users), 2)
        at = chance.uniform(0.0, days * DAY - 4000.0)
        for _ in range(chance.randint(1, 8)):
            messages.append((at, f"u{one}", f"u{other}"))
            one, other = other, one
            at += chance.expovariate(1 / 120.0)
    return sorted(message for message in messages if message[0] < days * DAY)


def write_messages(path: Path, messages: list[Message]) -> Path:
    """Write them as lines of a sender, a receiver and unix seconds."""
    lines = [f"{sender} {receiver} {START + at:.3f}\n" for at, sender, receiver in messages]
    path.write_text("source target time\n" + "".join(lines), encoding="utf-8")
    return path
