"""The commands of docs/shell.md that need no protos, every one of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.prove.tools import reason_missing, require
from tests.support import shell_sessions
from tests.support.databases import DatabaseUrls
from tests.support.rpc_server import running_server

pytestmark = pytest.mark.prove


@pytest.mark.parametrize("command", shell_sessions.commands(), ids=lambda command: " ".join(command.split()[:3]))
async def test_shell_session_prints_what_it_should(
    request: pytest.FixtureRequest, command: str, database_urls: DatabaseUrls, redis_url: str
) -> None:
    if shell_sessions.program_of(command) != "buf":
        require(request, "grpc-tools", reason_missing("grpc-tools"))
    variables: Any = {"REFLECTION": "true"}
    async with running_server(database_urls, redis_url, **variables) as server:
        await server.add("chat:7", "alice")
        token = str(server.user("alice").metadata[0][1]).removeprefix("Bearer ")
        printed = await asyncio.to_thread(shell_sessions.printed, command, ADDRESS=server.address, USER_TOKEN=token)
    assert shell_sessions.expected_of(command) in printed
