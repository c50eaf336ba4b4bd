"""Clients in other languages are generated, compiled and run, most of them beside a proto with options of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prove.tools import reason_missing, require
from tests.support.client_languages import PARTS, generate_and_compile

pytestmark = pytest.mark.prove


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("language", PARTS)
def test_client_language_is_generated_and_compiled(
    request: pytest.FixtureRequest, language: str, tmp_path: Path
) -> None:
    _, parts = PARTS[language]
    for part in parts:
        require(request, part, reason_missing(part))
    generate_and_compile(language, tmp_path / "work")
