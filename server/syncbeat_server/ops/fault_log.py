"""Trouble that goes on is told once for each cause, and once when it is over."""

from __future__ import annotations

import logging
import threading


class Trouble:
    """What keeps something from working. Any thread may tell it."""

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

    def met(self, cause: str) -> None:
        """Tell it, unless its last cause was the same."""
        with self._lock:
            known, self._cause = self._cause, cause
        if cause != known:
            self._logger.log(self._level, self._message, extra={**self._extra, "fault": cause})

    def ended(self) -> None:
        """Tell that it works again, if it did not."""
        with self._lock:
            known, self._cause = self._cause, None
        if known is not None:
            self._logger.info(self._over, extra=self._extra)
