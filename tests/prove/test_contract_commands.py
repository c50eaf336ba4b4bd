"""The commands of docs/shell.md that need no protos, every one of them."""

from __future__ import annotations

import pytest

from tests.prove.tools import reason_missing, require
from tests.support import shell_sessions
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.prove


@pytest.mark.parametrize("command", shell_sessions.commands(), ids=lambda command: " ".join(command.split()[:3]))
async def test_shell_session_prints_what_it_should(
    request: pytest.FixtureRequest, command: str, database_urls: DatabaseUrls, redis_url: str
) -> None:
    if shell_sessions.program_of(command) != "buf":
        require(request, "grpc-tools", reason_missing("grpc-tools"))
    printed = await shell_sessions.printed_beside_server(command, database_urls, redis_url)
    assert shell_sessions.expected_of(command) in printed
