"""Reads files that operators write: whole, within a bound, with a sentence for each way in which one is unusable."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

MAX_BYTES = 1024 * 1024
"""The most bytes of a file: a hundred times the largest apps file seen, or a bundle of authorities."""
# A secret written in place of its path must not reach the log. A text is logged only if it looks like a path and holds
# neither `=` nor the characters of JSON and PEM.
_PATH = re.compile(r"(?:~|\.{0,2})/[^=\"{}\n\r]{0,200}|[\w./-]{0,100}\.(?:env|toml|json|jwks|pem|crt|key|txt)")


class FileFault(ValueError):
    """A file cannot be used; the message says why and quotes none of its content. `missing`: there is no such file."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        FileFault: there is none, it may not be read, it is no regular file, or it is larger than 1 MiB.
    """
    shown = loggable_path(path)
    try:
        # Non-blocking: opening a FIFO waits for a writer that may never come.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _fault(error, shown) from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise FileFault(f"{shown} is {'a directory' if stat.S_ISDIR(found.st_mode) else 'no regular file'}")
        content = bytearray()
        while part := os.read(number, MAX_BYTES + 1 - len(content)):
            content += part
            if len(content) > MAX_BYTES:
                raise FileFault(f"{shown} is larger than {MAX_BYTES // 1024} KiB")
    except OSError as error:
        raise _fault(error, shown) from None
    finally:
        os.close(number)
    return bytes(content)


def file_version(path: Path) -> tuple[int, int]:
    """Return a file's modification time (ns) and inode, which differ when it is rewritten; zeros without a file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark; its lines end with a line feed.

    Raises:
        FileFault: as for `read_file`, or it is not UTF-8, or holds a NUL.
    """
    return decode_text(read_file(path), path)


def decode_text(content: bytes, path: Path) -> str:
    """Return the text of a file that was read already, as `read_text` does. Raises FileFault."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileFault(f"{loggable_path(path)} is not text in UTF-8") from None
    if "\0" in text:
        raise FileFault(f"{loggable_path(path)} holds a NUL byte, so it is not text in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def loggable_path(path: Path) -> str:
    """Return a path for a message, or a phrase in its place if it may be a secret written where a path belongs."""
    text = str(path)
    return f"the file {text}" if _PATH.fullmatch(text) and text.isprintable() else "the file that is named"


def _fault(error: OSError | ValueError, shown: str) -> FileFault:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileFault(f"there is no {shown.removeprefix('the ')}", missing=True)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "this is no path"
    return FileFault(f"{shown} cannot be opened: {reason}")
