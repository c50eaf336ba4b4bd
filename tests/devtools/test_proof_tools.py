"""A long proof whose tool cannot be had here says so in the run's last line, and fails it if everything is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("proof", "tool", "required", "code"), [("pgbouncer", "PgBouncer", "", 0), ("patroni", "Patroni", "1", 1)]
)
def test_proof_tool_that_is_missing_is_named_in_the_last_line(
    tmp_path: Path, proof: str, tool: str, required: str, code: int
) -> None:
    (tmp_path / f"{proof}.missing").write_text("this system has no apt to fetch it with\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", f"tests/prove/test_{proof}.py"],
        cwd=ROOT,
        env={**os.environ, "PROOF_TOOLS": str(tmp_path), "REQUIRE_ALL": required},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == f"prove: not proven, no {tool}: this system has no apt to fetch it with"
    assert done.returncode == code
