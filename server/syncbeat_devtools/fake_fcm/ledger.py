"""What was accepted, and what each device would have shown.

Bounded: at most `max_records` messages of 256 MiB altogether are kept, the oldest go first and take with them what
their device showed for them. A device is known as long as one of its messages is. The counters go on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple

import orjson

from syncbeat_devtools.fake_fcm.message.parser import Message, TargetKind

_MAX_BYTES = 256 << 20


class Effect(StrEnum):
    """What an accepted message did on its device."""

    SHOWN = "shown"
    REPLACED = "replaced"
    DATA = "data"
    NO_DEVICE = "no-device"


class Accepted(NamedTuple):
    """One accepted message.

    Attributes:
        sequence: 1, 2, 3, ... in the order of acceptance; a reset of the ledger does not start it anew.
        accepted_at: wall time, in seconds since the epoch.
        content: the message and what was read from it.
        effect: SHOWN, or REPLACED when a message with the same slot was on the screen; DATA for a message
            without anything to show; NO_DEVICE for a topic or condition.
    """

    sequence: int
    accepted_at: float
    content: Message
    effect: Effect

    @property
    def target(self) -> str:
        """The registration token, installation id, topic or condition."""
        return self.content.target

    @property
    def message(self) -> dict[str, Any]:
        """The whole message as it was sent; parsed anew at each call."""
        message: dict[str, Any] = orjson.loads(self.content.body)["message"]
        return message


@dataclass(frozen=True)
class DeviceView:
    """What one device would have shown.

    Attributes:
        token: its registration token.
        shown: how many notifications came up.
        replaced: how many took the place of an earlier one with the same slot.
        on_screen: the messages that can be seen now, oldest first.
        data_messages: the data-only messages, oldest first.
        data_by_delivery_id: how many data-only messages came for each `data.delivery_id`.
    """

    token: str
    shown: int
    replaced: int
    on_screen: list[Accepted]
    data_messages: list[Accepted]
    data_by_delivery_id: dict[str, int]


@dataclass(slots=True)
class _Device:
    records: deque[Accepted] = field(default_factory=deque)
    slots: dict[str, Accepted] = field(default_factory=dict)
    data_ids: Counter[str] = field(default_factory=Counter)
    shown: int = 0
    replaced: int = 0


@dataclass(eq=False)
class _Waiter:
    target: str | None
    missing: int
    done: asyncio.Future[None]


class Ledger:
    """The accepted messages of one fake FCM."""

    def __init__(self, max_records: int) -> None:
        self._max_records = max_records
        self._sequence = 0
        self._bytes = 0
        self._records: deque[Accepted] = deque()
        self._devices: dict[str, _Device] = {}
        self._waiters: list[_Waiter] = []
        self.effects: Counter[Effect] = Counter()
        self.repeated_data = 0

    @property
    def accepted(self) -> int:
        """How many messages were accepted since the start or the last reset."""
        return self.effects.total()

    @property
    def kept(self) -> int:
        """How many of them are still kept."""
        return len(self._records)

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest message; 0 before the first."""
        return self._sequence

    def accept(self, message: Message) -> Accepted:
        """Record a message and what its device makes of it."""
        device = self._devices.get(message.target)
        if device is None:
            device = self._devices[message.target] = _Device()
        effect = self._effect(device, message)
        self.effects[effect] += 1
        self._sequence += 1
        record = Accepted(self._sequence, time.time(), message, effect)
        self._records.append(record)
        device.records.append(record)
        if message.slot is not None and message.display:
            device.slots[message.slot] = record
        self._bytes += len(message.body)
        while len(self._records) > self._max_records or self._bytes > _MAX_BYTES:
            self._evict()
        if self._waiters:
            self._wake(message.target)
        return record

    def after(self, sequence: int, *, target: str | None = None, limit: int = 1000) -> list[Accepted]:
        """The kept messages after `sequence`, oldest first; those of one receiver if `target` is given."""
        if target is None:
            first = self._records[0].sequence if self._records else 0
            start = max(0, sequence + 1 - first)
            return list(islice(self._records, start, start + limit))
        device = self._devices.get(target)
        records = device.records if device else ()
        return [record for record in records if record.sequence > sequence][:limit]

    async def wait(self, sequence: int, *, target: str | None, min_count: int, timeout_s: float) -> None:
        """Return once `min_count` messages after `sequence` were accepted, or `timeout_s` has passed."""
        if target is None:
            have = max(0, self._sequence - sequence)
        else:
            have = len(self.after(sequence, target=target, limit=self._max_records))
        if have >= min_count:
            return
        waiter = _Waiter(target, min_count - have, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.done
        except TimeoutError:
            return
        finally:
            self._waiters.remove(waiter)

    def device(self, token: str) -> DeviceView:
        """What one device would have shown; empty for one that is not known."""
        device = self._devices.get(token, _Device())
        data = [record for record in device.records if record.effect is Effect.DATA]
        on_screen = [
            record
            for record in device.records
            if record.effect in (Effect.SHOWN, Effect.REPLACED)
            and (record.content.slot is None or device.slots.get(record.content.slot) is record)
        ]
        return DeviceView(token, device.shown, device.replaced, on_screen, data, dict(device.data_ids))

    def reset(self) -> None:
        """Forget the messages, the devices and the counters. Sequences go on: no reader's cursor gets stale."""
        self._records.clear()
        self._bytes = 0
        self._devices.clear()
        self.effects.clear()
        self.repeated_data = 0

    def _effect(self, device: _Device, message: Message) -> Effect:
        if message.target_kind in (TargetKind.TOPIC, TargetKind.CONDITION):
            return Effect.NO_DEVICE
        if not message.display:
            if message.delivery_id is not None:
                self.repeated_data += message.delivery_id in device.data_ids
                device.data_ids[message.delivery_id] += 1
            return Effect.DATA
        if message.slot is not None and message.slot in device.slots:
            device.replaced += 1
            return Effect.REPLACED
        device.shown += 1
        return Effect.SHOWN

    def _evict(self) -> None:
        record = self._records.popleft()
        message = record.content
        self._bytes -= len(message.body)
        device = self._devices[message.target]
        device.records.popleft()
        if not device.records:
            del self._devices[message.target]
            return
        if message.slot is not None and device.slots.get(message.slot) is record:
            del device.slots[message.slot]
        if record.effect is Effect.DATA and message.delivery_id is not None:
            device.data_ids[message.delivery_id] -= 1
            if not device.data_ids[message.delivery_id]:
                del device.data_ids[message.delivery_id]

    def _wake(self, target: str) -> None:
        for waiter in self._waiters:
            if waiter.target is None or waiter.target == target:
                waiter.missing -= 1
                if waiter.missing <= 0 and not waiter.done.done():
                    waiter.done.set_result(None)
