"""Tells in sentences why the JSON of an export cannot be read, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import InvalidOperation
from pathlib import Path
from typing import IO

import ijson

from syncbeat_server.errors import ConfigurationError

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CUT_OFF = "premature EOF"


@contextmanager
def told_faults(export: IO[bytes]) -> Iterator[None]:
    """Raise ConfigurationError in place of the parser's errors, whose text names no export."""
    try:
        yield
    except ijson.JSONError as error:
        raise ConfigurationError(f"{_name(export)}the export is no JSON document: {_what(error)}") from error
    except (SystemError, ValueError, InvalidOperation) as error:
        raise ConfigurationError(
            f"{_name(export)}the export has a number that cannot be read, as of an exponent of 19 digits"
        ) from error


def without_mark(export: IO[bytes], start: bytes) -> bytes:
    """Return the start of an export without the mark that some editors and shells put before UTF-8.

    Raises:
        ConfigurationError: it is UTF-16.
    """
    if start.startswith(_UTF16_MARKS):
        raise ConfigurationError(
            f"{_name(export)}the export is UTF-16, as `>` of PowerShell 5 writes it: take it again by `>` of another "
            "shell, or convert it to UTF-8"
        )
    return start.removeprefix(_UTF8_MARK)


def require_file(path: Path) -> None:
    """Refuse what cannot be read twice. Raises ConfigurationError: it is a pipe, a terminal, or `-`."""
    if str(path) == "-" or (path.exists() and not path.is_file()):
        raise ConfigurationError(f"{path}: a file is needed, since it is read twice: save the export as one")


def _what(error: ijson.JSONError) -> str:
    detail = error.args[0] if error.args else ""
    text = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
    if not text or _CUT_OFF in text:
        return "it ends too early, so that it was cut off: take it again"
    return f"{text.splitlines()[0].rstrip('.')}: take it again, or name the file that was exported"


def _name(export: IO[bytes]) -> str:
    name = getattr(export, "name", None)
    return f"{name}: " if isinstance(name, str | Path) else ""
