"""Prints the results, so that no error of the output loses hours of work."""

from __future__ import annotations

import os
import sys

from syncbeat_server.errors import ConfigurationError


def print_result(text: str) -> int:
    """Print text, with characters that the output's encoding lacks replaced. Returns 0, or 1 if the output is closed.

    Raises:
        ConfigurationError: it cannot be written, for example to a full disk.
    """
    letters = sys.stdout.encoding or "utf-8"
    try:
        text.encode(letters)
    except UnicodeEncodeError:
        text = text.replace("±", "+-").encode(letters, "backslashreplace").decode(letters)
    try:
        print(text, flush=True)
    except OSError as error:
        # Otherwise the interpreter would try to flush stdout again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 1
        raise ConfigurationError(f"simulate: the result cannot be written: {error.strerror}") from None
    return 0
