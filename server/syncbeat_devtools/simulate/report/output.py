"""Prints what hours of work have found, whatever is at the other end."""

from __future__ import annotations

import os
import sys

from syncbeat_server.errors import ConfigurationError


def printed(text: str) -> int:
    """Print it, in letters that the output has; 0, or 1 when nobody reads it.

    Raises:
        ConfigurationError: it cannot be written, to a full disk for one.
    """
    letters = sys.stdout.encoding or "utf-8"
    try:
        text.encode(letters)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").encode(letters, "backslashreplace").decode(letters)
    try:
        print(text, flush=True)
    except OSError as error:
        # Else it is tried once more as the program ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 1
        raise ConfigurationError(f"simulate: the result cannot be written: {error.strerror}") from None
    return 0
