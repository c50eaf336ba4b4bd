"""Proves that the sessions of docs/shell.md run with tools that `go install` brings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docs.commands import Serving, serving
from tests.docs.test_shell_sessions import PRINTED, play_session
from tests.prove.tools import reason_missing, require

pytestmark = pytest.mark.prove


@pytest.fixture(scope="module")
def make_run() -> Iterator[Serving]:
    """Return what `make run` runs, on a port of its own."""
    with serving(["demo", "--serve"], "RevokeUser", {"SYNCBEAT_LISTEN": "127.0.0.1:0"}) as running:
        yield running


@pytest.mark.parametrize("tool", PRINTED)
def test_shell_session_runs_with_the_installed_tools(
    request: pytest.FixtureRequest, tool: str, make_run: Serving
) -> None:
    require(request, "grpcurl, grpc-health-probe and ghz", reason_missing("go"))
    play_session(tool, make_run)
