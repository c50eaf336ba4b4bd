"""Holds the one stream that a device may have, and reads one event ahead while its owner does other things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from syncbeat.activity import DeviceStatus
from syncbeat.watch import Watch, WatchEvent


class StreamSlot:
    """A slot for a watch, which may be empty."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        """`on_event` is called when an event can be taken."""
        self._on_event = on_event
        self._watch: Watch | None = None
        self._reading: asyncio.Task[WatchEvent] | None = None
        self._was_open = False
        self.status: DeviceStatus | None = None
        """The device's status when the watch was opened; None without a watch."""

    @property
    def is_open(self) -> bool:
        """True while a stream brings what is new."""
        return self._watch is not None and self._watch.is_open

    @property
    def has_event(self) -> bool:
        """True if an event can be taken."""
        return self._reading is not None and self._reading.done()

    def has_broken(self) -> bool:
        """Tell if a stream has broken since this was asked last."""
        broke = self._was_open and not self.is_open
        self._was_open = self.is_open
        return broke

    def open(self, watch: Watch, status: DeviceStatus) -> None:
        """Read this watch from now on."""
        self._watch, self.status = watch, status
        self._read(watch)

    def take(self) -> WatchEvent:
        """Return the event that came. Raises what ended the watch."""
        if self._reading is None or self._watch is None:
            raise RuntimeError("no watch is read")
        event = self._reading.result()
        self._read(self._watch)
        return event

    async def close(self) -> None:
        """Close the watch, if there is one. An event that was not taken is dropped: the cursors do not know it."""
        watch, reading = self._watch, self._reading
        self._watch = self._reading = self.status = None
        self._was_open = False
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()  # marks it as retrieved
        if watch is not None:
            await watch.close()

    def _read(self, watch: Watch) -> None:
        self._reading = asyncio.ensure_future(anext(watch))
        self._reading.add_done_callback(lambda _: self._on_event())
