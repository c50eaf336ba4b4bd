"""Records accepted messages, and simulates the notifications that each device shows.

Bounded: at most `max_records` messages of `max_bytes` in total are kept. The oldest go with the notifications they
caused, and a device with its last message. The counters go on.
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


class Effect(StrEnum):
    """The effect of an accepted message on its device."""

    SHOWN = "shown"
    REPLACED = "replaced"
    DATA = "data"
    NO_DEVICE = "no-device"


class AcceptedMessage(NamedTuple):
    """One accepted message.

    Attributes:
        sequence: 1, 2, 3, ... in order of acceptance; a reset of the ledger does not restart it.
        accepted_at: wall time, in seconds since the epoch.
        content: the parsed message.
        effect: SHOWN, or REPLACED if a message with the same slot was on the screen; DATA for a message without
            anything to show; NO_DEVICE for a topic or condition.
    """

    sequence: int
    accepted_at: float
    content: Message
    effect: Effect

    @property
    def target(self) -> str:
        """Return the registration token, installation id, topic or condition."""
        return self.content.target

    @property
    def message(self) -> dict[str, Any]:
        """Return the whole message as it was sent; parsed anew at each call."""
        message: dict[str, Any] = orjson.loads(self.content.body)["message"]
        return message


@dataclass(frozen=True)
class DeviceView:
    """The simulated state of one device.

    Attributes:
        token: its registration token.
        shown: number of notifications that appeared.
        replaced: number of notifications that replaced one with the same slot.
        on_screen: messages visible now, oldest first.
        data_messages: data-only messages, oldest first.
        data_by_delivery_id: number of data-only messages by `data.delivery_id`.
    """

    token: str
    shown: int
    replaced: int
    on_screen: list[AcceptedMessage]
    data_messages: list[AcceptedMessage]
    data_by_delivery_id: dict[str, int]


@dataclass(slots=True)
class _Device:
    records: deque[AcceptedMessage] = field(default_factory=deque)
    slots: dict[str, AcceptedMessage] = field(default_factory=dict)
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

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._sequence = 0
        self._bytes = 0
        self._records: deque[AcceptedMessage] = deque()
        self._devices: dict[str, _Device] = {}
        self._waiters: list[_Waiter] = []
        self.effects: Counter[Effect] = Counter()
        self.repeated_data = 0

    @property
    def accepted(self) -> int:
        """Return the number of messages accepted since the start or the last reset."""
        return self.effects.total()

    @property
    def kept(self) -> int:
        """Return the number of messages still kept."""
        return len(self._records)

    @property
    def last_sequence(self) -> int:
        """Return the sequence of the newest message; 0 before the first."""
        return self._sequence

    def accept(self, message: Message) -> AcceptedMessage:
        """Record a message and apply it to its device."""
        device = self._devices.get(message.target)
        if device is None:
            device = self._devices[message.target] = _Device()
        effect = self._apply(device, message)
        self.effects[effect] += 1
        self._sequence += 1
        record = AcceptedMessage(self._sequence, time.time(), message, effect)
        self._records.append(record)
        device.records.append(record)
        if message.slot is not None and message.display:
            device.slots[message.slot] = record
        self._bytes += len(message.body)
        while len(self._records) > self._max_records or self._bytes > self._max_bytes:
            self._evict()
        if self._waiters:
            self._wake(message.target)
        return record

    def list_after(self, sequence: int, *, target: str | None = None, limit: int = 1000) -> list[AcceptedMessage]:
        """Return the kept messages after `sequence`, oldest first; only those for `target` if given."""
        if target is None:
            first = self._records[0].sequence if self._records else 0
            start = max(0, sequence + 1 - first)
            return list(islice(self._records, start, start + limit))
        device = self._devices.get(target)
        records = device.records if device else ()
        return [record for record in records if record.sequence > sequence][:limit]

    async def wait(self, sequence: int, *, target: str | None, min_count: int, timeout_s: float) -> None:
        """Wait until `min_count` messages after `sequence` were accepted, or `timeout_s` has passed."""
        if target is None:
            have = max(0, self._sequence - sequence)
        else:
            have = len(self.list_after(sequence, target=target, limit=self._max_records))
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
        """Return the state of one device; empty if it is unknown."""
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
        """Clear messages, devices and counters. Sequences continue, so that readers' cursors stay valid."""
        self._records.clear()
        self._bytes = 0
        self._devices.clear()
        self.effects.clear()
        self.repeated_data = 0

    def _apply(self, device: _Device, message: Message) -> Effect:
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
