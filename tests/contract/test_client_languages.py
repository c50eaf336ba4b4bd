"""Clients in other languages: what clients/README.md says of them, and the one that is quick to compile."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client_languages import PARTS, ROOT, generate_and_compile, told_by_the_page

pytestmark = pytest.mark.process

LANGUAGES = ("Go", "Java", "Kotlin", "TypeScript", "Dart", "Swift", "C#", "PHP", "Ruby")


def test_client_page_has_one_command_for_each_language() -> None:
    page = (ROOT / "clients" / "README.md").read_text(encoding="utf-8")
    for language in LANGUAGES:
        heading = re.escape("## " + language.replace("#", "\\#"))
        section = re.search(rf"^{heading}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        assert section is not None, language
        assert section[1].count("```sh") == 1
        assert "protoc -I clients/protos" in section[1]


def test_client_page_tells_which_languages_are_not_run() -> None:
    told = told_by_the_page()
    assert told.keys() == set(LANGUAGES)
    assert {language for language, text in told.items() if text != "not run"} == PARTS.keys()
    scripts = {path.stem for path in (ROOT / "tools" / "clients").glob("*.sh")} - {"prepare"}
    assert scripts == {script for script, _ in PARTS.values()}


def test_typescript_client_compiles_and_runs_beside_own_options(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("not run: no npm")
    subprocess.run(["sh", "tools/client_tools.sh", "typescript"], cwd=ROOT, check=True, capture_output=True)
    missing = Path(sys.prefix) / "proof-tools" / "typescript.missing"
    if missing.is_file():
        pytest.skip(f"not run: {missing.read_text(encoding='utf-8').strip()}")
    generate_and_compile("TypeScript", tmp_path / "work")
