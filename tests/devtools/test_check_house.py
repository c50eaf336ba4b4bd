"""The house rules find what breaks them, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools.check_house import (
    FOLDER_MODULES,
    check_docstrings,
    check_folders,
    check_proto_comments,
    check_python,
    check_suppressions,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("docstring", "refused"),
    [
        ("Return the hint of a device.", False),
        ("`wait` returns once it is closed.", False),
        ("However many tasks ask, one refresh is made.", False),
        ("Whether a stream is open.", True),
        ("What a device reports.", True),
        ("how long to wait.", True),
        ("If there is a stream, close it.", True),
    ],
)
def test_docstring_that_opens_with_a_question_word_is_refused(docstring: str, refused: bool) -> None:
    texts = [
        f'"""{docstring}"""\n',
        f'class Thing:\n    """{docstring}"""\n',
        f'class Thing:\n    async def method(self):\n        """{docstring}"""\n',
        f'LIMIT = 1\n"""{docstring}"""\n',
        f'class Rule:\n    wait_s: float = 1.0\n    """{docstring}"""\n',
    ]
    for line, text in zip((1, 1, 2, 2, 3), texts, strict=True):
        found = [finding.line for finding in check_docstrings(Path("module.py"), ast.parse(text))]
        assert found == ([line] if refused else [])


def test_proto_comment_that_opens_with_a_question_word_is_refused() -> None:
    text = "// Tells the time.\n// If asked.\nmessage A {\n  // What it holds.\n  string b = 1;\n}\n"
    assert [finding.line for finding in check_proto_comments(Path("a.proto"), text)] == [4]


def test_folder_of_too_many_modules_is_refused() -> None:
    folder = Path("server/syncbeat_server/feature")
    modules = [folder / f"module_{number}.py" for number in range(FOLDER_MODULES)]
    others = [folder / "__init__.py", folder / "README.md", folder / "store" / "module.py"]
    assert list(check_folders([*modules, *others])) == []
    assert [finding.path for finding in check_folders([*modules, folder / "one_more.py"])] == [folder]
    assert list(check_folders([Path("tests/rpc") / f"test_{number}.py" for number in range(40)])) == []


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ('monkeypatch.setattr(pool, "_TIMEOUT_S", 0.1)', True),
        ('setattr(pool, "_pause_s", 0.1)', True),
        ('monkeypatch.setattr("syncbeat_server.storage.pool._TIMEOUT_S", 0.1)', True),
        ('patch.setattr(sweep, name="_EVERY_S", value=0.1)', False),  # pytest has no such arguments
        ('monkeypatch.setattr(interval, "poll_interval", noting)', False),
        ('monkeypatch.setattr("tempfile.tempdir", folder)', False),
        ("setattr(message, field.name, value)", False),
        ("monkeypatch.delattr(pool, '_x')", False),
    ],
)
def test_setattr_of_a_private_name_is_refused(line: str, *, refused: bool) -> None:
    for folder in ("tests/push", "bench"):
        found = [finding.text for finding in check_python(Path(folder) / "module.py", f"{line}\n")]
        assert [text.startswith("replaces the private _") for text in found] == ([True] if refused else [])
    assert list(check_python(Path("server/module.py"), f"{line}\n")) == []


@pytest.mark.parametrize(
    ("comment", "refused"),
    [
        ("noqa", True),
        ("noqa: E501", True),
        ("noqa: E501, S311", True),
        ("type: ignore", True),
        ("type: ignore[arg-type]", True),
        ("type: ignore[arg-type]  # noqa: E501", True),
        ("noqa: S311  # no secret", False),
        ("type: ignore[arg-type]  # the test hands in what no caller may", False),
    ],
)
def test_silenced_check_without_a_reason_is_refused(comment: str, refused: bool) -> None:
    line = f"call()  {'#'} {comment}\n"
    assert [one.line for one in check_suppressions(Path("a.py"), line)] == ([1] if refused else [])
