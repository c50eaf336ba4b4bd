"""A bound on what an outage, or a caller, can write into the log: each cause once, then how often it came again.

The first line of a cause is written whole, with its traceback. While it goes on it is counted: every ten seconds a
line tells how often it came, with what distinguished the first of those, and one line tells that it is over.
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
MOST_CAUSES = 200
"""Causes told apart at a time; of more than that each logger's are one."""
MOST_SAMPLES = 20
_MOST_TEXT = 200
_OWN = ("syncbeat_server", "syncbeat_devtools")
_PLAIN = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})
# What the settings and the outage decide, and no caller: it tells causes apart. The rest makes samples.
_OF_CAUSE = ("reason", "error", "fault", "app_id", "app", "issuer", "listener", "status", "signal")
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
    """What came of one cause since its first line; nothing of the record, whose traceback holds on to much."""

    of: _Origin
    message: str
    began_s: float
    last_s: float
    untold: int = 0
    told: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)

    def is_over(self, now_s: float) -> bool:
        """Whether there is nothing to be told of it any more: it came once, a while ago."""
        return not (self.untold or self.told) and now_s - self.last_s >= WINDOW_S


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes records; warnings and errors of one cause once, and then their number. The lock is the handler's own."""

    def __init__(self, stream: TextIO, clock: Clock | None = None) -> None:
        super().__init__(stream)
        self._clock = clock or SystemClock()
        self._causes: dict[Cause, _Repeats] = {}
        self._closing = threading.Event()
        self._teller: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or count it."""
        try:
            whole = record.levelno < logging.WARNING or self._is_first(record)
        except Exception:  # noqa: BLE001  # a record that cannot be read is logging's to tell of, not its writer's
            self.handleError(record)
            return
        if whole:
            super().emit(record)

    def _is_first(self, record: logging.LogRecord) -> bool:
        now_s = self._clock.monotonic()
        cause = _cause(record)
        known = self._causes.get(cause)
        if known is None and len(self._causes) >= MOST_CAUSES:
            self._forget(now_s)
            if len(self._causes) >= MOST_CAUSES:
                cause = (record.name, record.levelname, _MANY)
                known = self._causes.get(cause)
        if known is None or known.is_over(now_s):
            extras = {name: value for name, value in record.__dict__.items() if name in _OF_CAUSE}
            origin = _Origin(record.name, record.levelno, record.pathname, record.lineno, extras)
            message = _MANY if cause[-1] == _MANY else _first_line(record.getMessage())
            self._causes[cause] = _Repeats(origin, message, now_s, now_s)
            return True
        known.untold += 1
        known.last_s = now_s
        if len(known.samples) < MOST_SAMPLES:
            known.samples.append(_sample(record))
        if self._teller is None:
            self._teller = threading.Thread(target=self._tell_for_ever, name="log repeats", daemon=True)
            self._teller.start()
        return False

    def tell(self, *, last: bool = False) -> None:
        """Write how often each cause came since this was called before, and which are over. `last`: all are told."""
        self.acquire()
        try:
            now_s = self._clock.monotonic()
            for cause, known in list(self._causes.items()):
                if known.untold:
                    self._write(known, known.message, known.untold, now_s - known.began_s, known.samples)
                    known.told, known.untold, known.samples = known.told + known.untold, 0, []
                elif now_s - known.last_s >= WINDOW_S:
                    del self._causes[cause]
                    if known.told:
                        self._write(known, f"over: {known.message}", known.told, known.last_s - known.began_s, [])
            if last:
                self._causes.clear()
        finally:
            self.release()

    def close(self) -> None:
        """Tell what is counted, at the end of the process at the latest."""
        self._closing.set()
        self.tell(last=True)
        super().close()

    def _write(self, known: _Repeats, message: str, count: int, seconds: float, samples: list[dict[str, str]]) -> None:
        of = known.of
        told = logging.LogRecord(of.logger, of.level, of.path, of.line, message, None, None)
        told.__dict__.update(of.extras, repeated=count, seconds=round(seconds, 1))
        if any(samples):
            told.__dict__["samples"] = samples
        super().emit(told)

    def _forget(self, now_s: float) -> None:
        for cause in [cause for cause, known in self._causes.items() if known.is_over(now_s)]:
            del self._causes[cause]

    def _tell_for_ever(self) -> None:
        while not self._closing.wait(WINDOW_S):
            self.tell()


def _cause(record: logging.LogRecord) -> Cause:
    # Other libraries' messages come with the numbers and addresses of what they are about.
    said = _VARYING.sub("#", _first_line(str(record.msg)))
    extras = [_VARYING.sub("#", str(record.__dict__.get(name, ""))[:_MOST_TEXT]) for name in _OF_CAUSE]
    error, place = "", ""
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        error, place = record.exc_info[0].__name__, _place(record.exc_info[2])
    return (record.name, record.levelname, error, place, *extras, said)


def _place(trace: TracebackType | None) -> str:
    """The last line of ours in a traceback: two faults of one class are two causes."""
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
