"""Exports that cannot be read are told by their name, their fault and what to do, in words."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from syncbeat_server.cli.main import main
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.export_faults import require_file
from syncbeat_server.transfer.firebase.auth_export import read_users
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.rtdb.reading import read_entries

pytestmark = pytest.mark.unit

TEXT = 'version = 1\n[[value]]\npath = "a/{k}"\nscope = "s"\nkey = "{k}"\n'
MAP = parse_map(TEXT)


def told(octets: bytes, tmp_path: Path) -> str:
    file = tmp_path / "tree.json"
    file.write_bytes(octets)
    with file.open("rb") as export, pytest.raises(ConfigurationError) as refused:
        list(read_entries(export, MAP.root))
    return str(refused.value)


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        ('{"a": {"k": 1}}'.encode("utf-16"), "the export is UTF-16"),
        (b'{"a": {"k": ', "it ends too early, so that it was cut off: take it again"),
        (b"", "it ends too early"),
        (b'{"a": {"k": NaN}}', "invalid char in json text: take it again"),
        (b'{"a": "\xff"}', "invalid bytes in UTF8 string: take it again"),
        (b"Error: HTTP 401", "invalid char in json text"),
    ],
)
def test_fault_of_an_export_names_file_and_remedy(octets: bytes, said: str, tmp_path: Path) -> None:
    message = told(octets, tmp_path)
    assert message.startswith(f"{tmp_path / 'tree.json'}: the export is ")
    assert said in message
    assert "b'" not in message
    assert len(message.splitlines()) == 1


def test_mark_before_utf8_is_passed_over() -> None:
    (entry,) = read_entries(io.BytesIO('\ufeff{"a": {"k": 1}}'.encode()), MAP.root)
    assert (entry.path, entry.value) == (("a", "k"), 1)
    assert len(list(read_users(io.BytesIO('\ufeff{"users": [{"localId": "ann"}]}'.encode())))) == 1


def test_exports_that_are_no_files_are_refused_in_words(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("-"), tmp_path / "pipe", tmp_path):
        with pytest.raises(ConfigurationError, match="a file is needed, since it is read twice"):
            require_file(path)


def dry_run(tmp_path: Path, tree: str, *more: str) -> int:
    (tmp_path / "map.toml").write_text(TEXT)
    (tmp_path / "export.json").write_text(tree)
    return main(["import-rtdb", str(tmp_path / "export.json"), "--map", str(tmp_path / "map.toml"), "--dry-run", *more])


@pytest.mark.parametrize("tree", ["null", "{}", '{"a": {}}', '{"a": {"k": null}}'])
def test_export_of_which_the_map_takes_nothing_is_told(
    tmp_path: Path, tree: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(tmp_path, tree) == 3
    assert "the export has nothing that a rule of the map takes" in capsys.readouterr().out
    assert dry_run(tmp_path, '{"a": {"k": 1}}') == 0


@pytest.mark.parametrize(
    ("moment", "said"), [("2999-01-01T00:00:00Z", "in the future"), ("1969-12-31T23:59:59Z", "1970")]
)
def test_dry_run_refuses_the_source_times_of_an_import(
    tmp_path: Path, moment: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(tmp_path, '{"a": {"k": 1}}', "--source-time", moment) == 1
    assert said in capsys.readouterr().err


def test_unknown_role_is_told_in_the_words_of_roles() -> None:
    with pytest.raises(ConfigurationError, match="'READER' or 'WRITER'"):
        parse_map(
            'version = 1\n[[member]]\npath = "m/{u}"\nscope = "s"\nuser = "{u}"\nrole = "{.}"\nroles = {a = "ADMIN"}\n'
        )
