"""Damages files that others write: every way in which reading one again may fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from syncbeat_server.ops.files import MAX_BYTES

# Apart, so that no scan for secrets takes a header for a key.
_KEY = b"PRIVATE KEY"


def remove(path: Path) -> None:
    """Remove whatever stands there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(path: Path, text: str) -> None:
    """Let the file hold this text."""
    path.write_text(text, encoding="utf-8")


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("no-such-file"))


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def holding(content: bytes) -> Callable[[Path], None]:
    """Write `content` there."""

    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


UNREADABLE: Mapping[str, Callable[[Path], None]] = {
    "gone": lambda path: None,
    "directory": _directory,
    "symlink loop": _loop,
    "dangling symlink": _dangling,
    "fifo": _fifo,
    "too large": holding(b"#" * (MAX_BYTES + 1)),
}
"""Ways to make a file that cannot be read, whatever it is to hold; each makes it where nothing stands."""

NOT_JSON: Mapping[str, Callable[[Path], None]] = {
    **UNREADABLE,
    "empty": holding(b""),
    "NUL": holding(b"\0" * 100),
    "half-written": holding(b'{"type": "service_account", "project_id": "dem'),
    "latin-1": holding('{"type": "é"}'.encode("latin-1")),
    "only a BOM": holding(b"\xef\xbb\xbf"),
    "another kind of file": holding(b"-----BEGIN %b-----\n" % _KEY),
    "a list": holding(b"[]"),
    "a number": holding(b"5"),
    "null": holding(b"null"),
    "another object": holding(b'{"apps": {}}'),
    "wrong types": holding(
        b'{"type": "service_account", "project_id": 5, "private_key": [], "client_email": {}, "token_uri": 1}'
    ),
    "a key that is none": holding(
        b'{"type": "service_account", "project_id": "p", "private_key": "x", "client_email": "a@p", '
        b'"token_uri": "https://oauth2.googleapis.com/token"}'
    ),
    "a key of another type": holding(
        b'{"type": "service_account", "project_id": "p", "private_key": 7, "client_email": "a@p", '
        b'"token_uri": "https://oauth2.googleapis.com/token"}'
    ),
    "nested deep": holding(b"[" * 5_000 + b"]" * 5_000),
}

NOT_APPS: Mapping[str, Callable[[Path], None]] = {
    **UNREADABLE,
    "empty": holding(b""),
    "NUL": holding(b"\0" * 100),
    "half-written": holding(b'[apps.default.templates.note]\ndefault = { title = "{wh'),
    "latin-1": holding('[apps.é]\njwt_issuer = "x"'.encode("latin-1")),
    "UTF-16": holding('[apps.x]\njwt_issuer = "x"'.encode("utf-16")),
    "JSON": holding(b'{"apps": {}}'),
    "another table": holding(b"[app.default]\n"),
    "apps that are no tables": holding(b"[apps]\ndefault = 5\n"),
    "an app that is no table": holding(b"[apps]\nshop = 'x'\n"),
    "a setting that does not exist": holding(b"[apps.shop]\njwt_issuer = 'https://shop.example'\nnone = 1\n"),
    "a template without a text": holding(b"[apps.default.templates.note]\nde = {}\n"),
    "templates that are none": holding(b"[apps.default]\ntemplates = 5\n"),
    "an issuer twice": holding(b"[apps.shop]\n"),
    "nested deep": holding(b"x = " + b"[" * 5_000 + b"]" * 5_000),
    "keys nested deep": holding(b"x" + b".x" * 3_000 + b" = 1"),
    "a number without an end": holding(b"[apps.default]\ntemplates = " + b"9" * 10_000),
}

NOT_PEM: Mapping[str, Callable[[Path], None]] = {
    **UNREADABLE,
    "empty": holding(b""),
    "NUL": holding(b"\0" * 100),
    "half-written": holding(b"-----BEGIN CERTIFICATE-----\nMIIB"),
    "bad base64": holding(b"-----BEGIN %b-----\n????\n-----END %b-----\n" % (_KEY, _KEY)),
    "another structure": holding(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
    "UTF-16": holding("-----BEGIN CERTIFICATE-----\n".encode("utf-16")),
    "JSON": holding(b"{}"),
}
