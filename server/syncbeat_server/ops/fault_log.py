"""Logs a lasting fault once for each cause, and once when it is over."""

from __future__ import annotations

import logging
import threading


class FaultLog:
    """Logs the faults of one thing that should work. Safe to call from any thread."""

    def __init__(
        self, logger: logging.Logger, message: str, over: str, level: int = logging.ERROR, **extra: str
    ) -> None:
        """`message` is logged at `level` beside the cause, `over` when it works again, each with `extra`."""
        self._logger = logger
        self._message = message
        self._over = over
        self._level = level
        self._extra = extra
        self._cause: str | None = None
        self._lock = threading.Lock()

    def report(self, cause: str) -> None:
        """Log a fault, unless the last one had the same cause."""
        with self._lock:
            known, self._cause = self._cause, cause
        if cause != known:
            self._logger.log(self._level, self._message, extra={**self._extra, "fault": cause})

    def resolve(self) -> None:
        """Log that it works again, if a fault was reported."""
        with self._lock:
            known, self._cause = self._cause, None
        if known is not None:
            self._logger.info(self._over, extra=self._extra)
