"""Files that operators write, read whole and within a bound, with a sentence for whatever is wrong with them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

MOST_BYTES = 1024 * 1024
"""Of each file: a hundred times what the largest apps file seen, or a bundle of authorities, comes to."""

# Whoever writes a secret where its path belongs is not to find it in a log. What starts like a path, and holds neither
# `=` nor what stands in JSON and PEM, is shown.
_PATH = re.compile(r"(?:~|\.{0,2})/[^=\"{}\n\r]{0,200}|[\w./-]{0,100}\.(?:env|toml|json|jwks|pem|crt|key|txt)")


class FileFault(ValueError):
    """A file cannot be used; the message says why, and holds nothing that stands in it. `missing`: there is none."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


def read_file(path: Path) -> bytes:
    """Returns what a file holds.

    Raises:
        FileFault: there is none, it may not be read, it is no regular file, or it is larger than 1 MiB.
    """
    shown = shown_path(path)
    try:
        # Without waiting: a FIFO has a writer whenever it likes.
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _fault(error, shown) from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise FileFault(f"{shown} is {'a directory' if stat.S_ISDIR(found.st_mode) else 'no regular file'}")
        content = bytearray()
        while part := os.read(number, MOST_BYTES + 1 - len(content)):
            content += part
            if len(content) > MOST_BYTES:
                raise FileFault(f"{shown} is larger than {MOST_BYTES // 1024} KiB")
    except OSError as error:
        raise _fault(error, shown) from None
    finally:
        os.close(number)
    return bytes(content)


def written_at(path: Path) -> tuple[int, int]:
    """Returns what tells the same content written anew from what was there: time and inode; zeros without a file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8, with or without a byte order mark; its lines end with a line feed.

    Raises:
        FileFault: as for `read_file`, or it is not UTF-8, or holds a NUL.
    """
    return text_of(read_file(path), path)


def text_of(content: bytes, path: Path) -> str:
    """Returns what `read_text` would, of a file that was read already. Raises FileFault."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileFault(f"{shown_path(path)} is not text in UTF-8") from None
    if "\0" in text:
        raise FileFault(f"{shown_path(path)} holds a NUL byte, so it is not text in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown_path(path: Path) -> str:
    """Returns a path as a message may show it: not at all where it may be a secret that was written in its place."""
    text = str(path)
    return f"the file {text}" if _PATH.fullmatch(text) and text.isprintable() else "the file that is named"


def _fault(error: OSError | ValueError, shown: str) -> FileFault:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FileFault(f"there is no {shown.removeprefix('the ')}", missing=True)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "this is no path"
    return FileFault(f"{shown} cannot be opened: {reason}")
