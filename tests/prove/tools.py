"""Finds what the long proofs need beside the pinned packages, or says why it is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = Path(os.environ.get("PROOF_TOOLS") or Path(sys.prefix) / "proof-tools")
_RUN_S = 60.0
UNPROVEN = pytest.StashKey[dict[str, str]]()
"""Proofs that this run left out, and why: told in its last line."""


def require(request: pytest.FixtureRequest, name: str, lacks: str) -> None:
    """Skip the test unless `lacks` is empty; with REQUIRE_ALL=1 fail it.

    Either way the last line of the run names what was not proven.
    """
    if not lacks:
        return
    request.config.stash.setdefault(UNPROVEN, {})[name] = lacks
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(f"no {name}: {lacks}", pytrace=False)
    pytest.skip(f"no {name}: {lacks}")


def reason_missing(name: str) -> str:
    """Return why a tool is not there; empty when it is."""
    if (_FOLDER / f"{name}.missing").is_file():
        return (_FOLDER / f"{name}.missing").read_text(encoding="utf-8").strip()
    return "" if (_FOLDER / f"{name}.made").is_file() else "it is not made yet: 'make prove' does so first"


def proof_programs() -> Path:
    """Return the folder of `patroni`, `etcd`, `pip-audit` and their Python."""
    return _FOLDER / "python" / "bin"


def pgbouncer_program() -> Path:
    """The program; the libraries that the system may lack are beside it."""
    return _FOLDER / "pgbouncer" / "run" / "pgbouncer"


def runs(*command: Path | str) -> bool:
    """Return whether this program runs here."""
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_RUN_S,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0
