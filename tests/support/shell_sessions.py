"""The commands of docs/shell.md that call a server by its reflection alone, and the tools that they need."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import DatabaseUrls
from tests.support.rpc_server import running_server

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("PROOF_TOOLS") or Path(sys.prefix) / "proof-tools") / "grpc-tools" / "bin"
"""The folder that `tools/client_tools.sh` installs grpcurl and others in."""
SEARCHED = os.pathsep.join([str(TOOLS), str(Path(sys.prefix) / "bin"), os.environ["PATH"]])
"""The PATH of a reader who has these tools and this virtual environment."""
_RUN_S = 60.0

EXPECTED = {
    "buf curl --list-methods": "syncbeat.v1.SyncService/WatchHints",
    "grpcurl -plaintext list": "grpc.reflection.v1.ServerReflection",
    "grpcurl -plaintext describe": "rpc GetHint ( .syncbeat.v1.GetHintRequest ) returns",
    "grpcurl -plaintext -H": '"scope": "chat:7"',
    "ghz --insecure --call": "[OK]   20 responses",
    "grpc-health-probe -addr": "status: SERVING",
}
"""Output of each command, by its first words."""


def commands() -> list[str]:
    """Return the commands of that section."""
    page = (ROOT / "docs" / "shell.md").read_text(encoding="utf-8")
    found = re.search(r"## Without protos\n.*?```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def program_of(command: str) -> str:
    """Return the program that a command runs."""
    return command.partition(" ")[0]


def require_tool(program: str) -> None:
    """Skip the test unless a program is on this machine, or among the tools made for proofs."""
    if shutil.which(program, path=SEARCHED) is None:
        pytest.skip(f"not run: no {program}; `sh tools/client_tools.sh grpc-tools` installs it where there is Go")


def printed(command: str, **variables: str) -> str:
    """Run a command as a reader's shell does; what it printed."""
    environment = {**os.environ, **variables, "PATH": SEARCHED}
    ran = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_RUN_S, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


async def printed_beside_server(command: str, urls: DatabaseUrls, redis_url: str) -> str:
    """Run a command beside a server with reflection, with the token of alice, who is in one scope; what it printed."""
    async with running_server(urls, redis_url, REFLECTION="true") as server:
        await server.add("chat:7", "alice")
        token = str(server.user("alice").metadata[0][1]).removeprefix("Bearer ")
        return await asyncio.to_thread(printed, command, ADDRESS=server.address, USER_TOKEN=token)


def expected_of(command: str) -> str:
    """Return what a command has to print."""
    words = command.replace('"$ADDRESS" ', "")
    return next(text for start, text in EXPECTED.items() if words.startswith(start))
