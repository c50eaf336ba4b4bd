"""The commands of docs/shell.md that need no protos, where their tools are there."""

from __future__ import annotations

import pytest

from syncbeat.v1 import directory_service_pb2
from tests.support import shell_sessions
from tests.support.databases import DatabaseUrls
from tests.support.rpc_server import running_server

pytestmark = pytest.mark.rpc


def test_shell_sessions_of_the_page_are_all_expected() -> None:
    told = [shell_sessions.expected_of(command) for command in shell_sessions.commands()]
    assert sorted(told) == sorted(shell_sessions.EXPECTED.values())


@pytest.mark.parametrize("command", shell_sessions.commands(), ids=lambda command: " ".join(command.split()[:2]))
async def test_shell_session_prints_what_it_should(command: str, database_urls: DatabaseUrls, redis_url: str) -> None:
    shell_sessions.require_tool(shell_sessions.program_of(command))
    printed = await shell_sessions.printed_beside_server(command, database_urls, redis_url)
    assert shell_sessions.expected_of(command) in printed


async def test_shell_session_server_is_that_of_the_page(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with running_server(database_urls, redis_url) as server:
        await server.add("chat:7", "alice")
        page = await server.user("alice")(directory_service_pb2.ListScopesRequest())
        assert [one.scope for one in page.scopes] == ["chat:7"]
