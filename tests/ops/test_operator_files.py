"""Files of operators: read whole, within a bound, and a sentence for whatever else stands there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncbeat_server.ops.files import MAX_BYTES, FileFault, loggable_path, read_file, read_text
from tests.support.file_damage import UNREADABLE

pytestmark = pytest.mark.unit

NOBODY = 65_534


@contextmanager
def without_rights() -> Iterator[None]:
    """For the block this process is no superuser, who may read everything."""
    us = os.geteuid()
    if us == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if us == 0:
            os.seteuid(us)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ("gone", "there is no file"),
        ("directory", "is a directory"),
        ("symlink loop", "symbolic links"),
        ("dangling symlink", "there is no file"),
        ("fifo", "is no regular file"),
        ("too large", "is larger than 1024 KiB"),
    ],
)
def test_file_unreadable_is_reported_with_its_path(tmp_path: Path, shape: str, told: str) -> None:
    path = tmp_path / "secrets"
    UNREADABLE[shape](path)
    with pytest.raises(FileFault, match=told) as raised:
        read_file(path)
    assert str(path) in str(raised.value)
    assert raised.value.missing == (told == "there is no file")


def test_file_without_permission_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("x")
    path.chmod(0)
    with without_rights(), pytest.raises(FileFault, match="cannot be opened: Permission denied"):
        read_file(path)


def test_file_of_the_maximum_size_and_symlinks_are_read(tmp_path: Path) -> None:
    path, link = tmp_path / "large", tmp_path / "link"
    path.write_bytes(b"x" * MAX_BYTES)
    link.symlink_to(path)
    assert len(read_file(link)) == MAX_BYTES


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa\r\nb\r\n", b"a\nb\n", b"a\rb\r"])
def test_file_text_is_read_alike_whatever_editor_wrote_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert read_text(path) == "a\nb\n"


@pytest.mark.parametrize("content", [b"\xff\xfea\0", "é".encode("latin-1"), b"a\0b"])
def test_file_that_is_no_text_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(FileFault, match="text in UTF-8"):
        read_text(path)


@pytest.mark.parametrize("name", ["/run/secrets/jwt", "../a b/secrets", "~/x", ".env", "deploy/apps.toml"])
def test_file_path_is_shown_in_errors(name: str) -> None:
    assert loggable_path(Path(name)) == f"the file {name}"


@pytest.mark.parametrize(
    "secret",
    [
        "k=hunter2",
        "hunter2",
        '{"private_key": "hunter2"}',
        "-----BEGIN PRIVATE KEY-----\nhunter2",
        "/hunter2=",
        "/a\0hunter2",
        "/" + "hunter2" * 1_000,
    ],
)
def test_file_path_that_is_a_secret_is_redacted(secret: str) -> None:
    with pytest.raises(FileFault) as raised:
        read_file(Path(secret))
    assert "hunter2" not in str(raised.value)
