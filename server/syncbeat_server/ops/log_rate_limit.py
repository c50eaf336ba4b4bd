"""Bounds what an outage, or a caller, can write to the log: each cause once, then its counts.

Warnings and errors are bounded, and of what is below those each record that names its `fault` or `cause`.

The first record of a cause is written whole, with its traceback. Repeats are counted: every ten seconds a line says how
many there were, with samples of the fields that differed, and one line says that the cause is over.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

from syncbeat_server.clock import Clock, SystemClock

WINDOW_S = 10.0
MAX_CAUSES = 200
"""The most causes that are counted separately; beyond them, all causes of a logger are counted as one."""
MAX_SAMPLES = 20
_MOST_TEXT = 200
_OWN = ("syncbeat_server", "syncbeat_devtools")
_PLAIN = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})
# Fields that settings and outages decide, and no caller: they distinguish causes. All other fields become samples.
_OF_CAUSE = ("reason", "error", "fault", "cause", "app_id", "app", "issuer", "listener", "status", "signal")
_NAMED_CAUSES = frozenset({"fault", "cause"})
_VARYING = re.compile(r"0x[0-9a-f]+|\d+")
_MANY = "messages of many kinds"

Cause = tuple[str, ...]


@dataclass(frozen=True)
class _Origin:
    logger: str
    level: int
    path: str
    line: int
    extras: dict[str, object]


@dataclass
class _Repeats:
    """Counts the repeats of one cause. Keeps no record, since a traceback keeps whole frames alive."""

    origin: _Origin
    message: str
    began_s: float
    last_s: float
    pending: int = 0
    reported: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)

    def is_over(self, now_s: float) -> bool:
        """Return True if nothing of it is left to report: it occurred once, and longer ago than the window."""
        return not (self.pending or self.reported) and now_s - self.last_s >= WINDOW_S


class RateLimitedHandler(logging.StreamHandler[TextIO]):
    """Writes records; warnings and errors of one cause once, then their count. Guarded by the handler's own lock."""

    def __init__(self, stream: TextIO, clock: Clock | None = None) -> None:
        super().__init__(stream)
        self._clock = clock or SystemClock()
        self._causes: dict[Cause, _Repeats] = {}
        self._closing = threading.Event()
        self._summarizer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it."""
        try:
            bounded = record.levelno >= logging.WARNING or not _NAMED_CAUSES.isdisjoint(record.__dict__)
            whole = not bounded or self._is_first(record)
        except Exception:  # noqa: BLE001  # logging itself reports a record that cannot be read, not its writer
            self.handleError(record)
            return
        if whole:
            super().emit(record)

    def _is_first(self, record: logging.LogRecord) -> bool:
        now_s = self._clock.monotonic()
        cause = _cause(record)
        known = self._causes.get(cause)
        if known is None and len(self._causes) >= MAX_CAUSES:
            self._remove_ended(now_s)
            if len(self._causes) >= MAX_CAUSES:
                cause = (record.name, record.levelname, _MANY)
                known = self._causes.get(cause)
        if known is None or known.is_over(now_s):
            extras = {name: value for name, value in record.__dict__.items() if name in _OF_CAUSE}
            origin = _Origin(record.name, record.levelno, record.pathname, record.lineno, extras)
            message = _MANY if cause[-1] == _MANY else _first_line(record.getMessage())
            self._causes[cause] = _Repeats(origin, message, now_s, now_s)
            return True
        known.pending += 1
        known.last_s = now_s
        if len(known.samples) < MAX_SAMPLES:
            known.samples.append(_sample(record))
        if self._summarizer is None:
            self._summarizer = threading.Thread(target=self._summarize_for_ever, name="log repeats", daemon=True)
            self._summarizer.start()
        return False

    def write_summaries(self, *, last: bool = False) -> None:
        """Write the count of each cause since the previous call, and the causes that are over; `last` forgets all."""
        self.acquire()
        try:
            now_s = self._clock.monotonic()
            for cause, known in list(self._causes.items()):
                if known.pending:
                    self._write(known, known.message, known.pending, now_s - known.began_s, known.samples)
                    known.reported, known.pending, known.samples = known.reported + known.pending, 0, []
                elif now_s - known.last_s >= WINDOW_S:
                    del self._causes[cause]
                    if known.reported:
                        self._write(known, f"over: {known.message}", known.reported, known.last_s - known.began_s, [])
            if last:
                self._causes.clear()
        finally:
            self.release()

    def close(self) -> None:
        """Write the pending counts; logging closes its handlers at the end of the process."""
        self._closing.set()
        self.write_summaries(last=True)
        super().close()

    def _write(self, known: _Repeats, message: str, count: int, seconds: float, samples: list[dict[str, str]]) -> None:
        origin = known.origin
        record = logging.LogRecord(origin.logger, origin.level, origin.path, origin.line, message, None, None)
        record.__dict__.update(origin.extras, repeated=count, seconds=round(seconds, 1))
        if any(samples):
            record.__dict__["samples"] = samples
        super().emit(record)

    def _remove_ended(self, now_s: float) -> None:
        for cause in [cause for cause, known in self._causes.items() if known.is_over(now_s)]:
            del self._causes[cause]

    def _summarize_for_ever(self) -> None:
        while not self._closing.wait(WINDOW_S):
            self.write_summaries()


def _cause(record: logging.LogRecord) -> Cause:
    # Messages of other libraries hold numbers and addresses, which would make each a cause of its own.
    message = _VARYING.sub("#", _first_line(str(record.msg)))
    extras = [_VARYING.sub("#", str(record.__dict__.get(name, ""))[:_MOST_TEXT]) for name in _OF_CAUSE]
    error, place = "", ""
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        error, place = record.exc_info[0].__name__, _place(record.exc_info[2])
    return (record.name, record.levelname, error, place, *extras, message)


def _place(trace: TracebackType | None) -> str:
    """Return the last line of our code in a traceback, so that two faults of one class are two causes."""
    found = ""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith(_OWN):
            found = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _sample(record: logging.LogRecord) -> dict[str, str]:
    extras = {name: value for name, value in record.__dict__.items() if name not in _PLAIN and name not in _OF_CAUSE}
    return {name: str(value)[:_MOST_TEXT] for name, value in extras.items()}


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:_MOST_TEXT]
