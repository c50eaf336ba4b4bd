"""The one stream that a device may have, read ahead by one event while its owner does other things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from syncbeat.activity import Standing
from syncbeat.watch import Watch, WatchEvent


class StreamSlot:
    """Holds a watch, or none."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        """`on_event` is called when there is something to take."""
        self._on_event = on_event
        self._watch: Watch | None = None
        self._reading: asyncio.Task[WatchEvent] | None = None
        self._was_open = False
        self.standing: Standing | None = None
        """What the device said of itself when the watch was opened; None without one."""

    @property
    def is_open(self) -> bool:
        """Whether a stream brings what is new."""
        return self._watch is not None and self._watch.is_open

    @property
    def has_event(self) -> bool:
        """Whether there is something to take."""
        return self._reading is not None and self._reading.done()

    def has_broken(self) -> bool:
        """Whether a stream that was open when this was asked last is not any more."""
        broke = self._was_open and not self.is_open
        self._was_open = self.is_open
        return broke

    def open(self, watch: Watch, standing: Standing) -> None:
        """Read a watch from now on."""
        self._watch, self.standing = watch, standing
        self._read(watch)

    def take(self) -> WatchEvent:
        """The event that came. Raises what ended the watch."""
        if self._reading is None or self._watch is None:
            raise RuntimeError("no watch is read")
        event = self._reading.result()
        self._read(self._watch)
        return event

    async def close(self) -> None:
        """End the watch, if there is one. An event that was not taken is dropped: the cursors do not know it."""
        watch, reading = self._watch, self._reading
        self._watch = self._reading = self.standing = None
        self._was_open = False
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()  # nobody else asks for it
        if watch is not None:
            await watch.close()

    def _read(self, watch: Watch) -> None:
        self._reading = asyncio.ensure_future(anext(watch))
        self._reading.add_done_callback(lambda _: self._on_event())
