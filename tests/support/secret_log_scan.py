"""A log handler that collects the lines in which a token or a key stands."""

from __future__ import annotations

import logging
import re
import traceback

# A JWT or half of one, a refresh token, an authorization value, a private key, and what the tests call their tokens.
_SECRET = re.compile(r"eyJ[\w-]{8,}|sbr_[\w-]{8,}|[Bb]earer [\w.-]{8,}|PRIVATE KEY|a-token-of-|0123456789abcdef0123")


class SecretLogScan(logging.Handler):
    """Looks for tokens and keys in whatever is logged by this process."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        text = f"{record.getMessage()} {record.__dict__} {trace}"
        if _SECRET.search(text):
            self.found.append(f"{record.name}:{record.lineno}: {record.msg}")
