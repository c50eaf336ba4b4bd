"""Sessions of docs/shell.md run as they stand where their tools are installed, and are marked "not run" elsewhere."""

from __future__ import annotations

import re

import pytest

from tests.docs.commands import Serving
from tests.docs.pages import ROOT, blocks_of
from tests.docs.shell_sessions import run_shell, running_shell
from tests.support.shell_sessions import commands, require_tool

pytestmark = pytest.mark.process

PAGE = ROOT / "docs" / "shell.md"
SESSIONS: dict[str, list[str]] = {}
for block in blocks_of(PAGE):
    if block.text.splitlines() == commands():
        continue  # tests/contract runs them, each by itself
    SESSIONS.setdefault(block.text.split()[0], []).append(block.text)

# What the last block of a session prints, among other things.
PRINTED = {
    "grpcurl": "TOKEN_INVALID",
    "buf": "EVENT_STATE_DUPLICATE",
    "grpc-health-probe": "SERVING",
    "ghz": r"\[OK\]\s+200 responses",
}


def play_session(tool: str, make_run: Serving) -> None:
    """Run the blocks of a tool in their order; a stream goes on while those after it run."""
    variables = make_run.exports()
    blocks, printed = list(SESSIONS[tool]), ""
    if tool == "ghz":  # its device is registered by the session before it
        run_shell(SESSIONS["buf"][0], variables)
    while blocks:
        block = blocks.pop(0)
        if "WatchHints" in block:
            with running_shell(block, variables) as watching:
                watching.wait_for("checkpoint")
                run_shell(blocks.pop(0), variables)
                watching.wait_for("change")
                watching.wait_for("hi")
            continue
        printed = run_shell(block, variables)
    assert re.search(PRINTED[tool], printed), printed


@pytest.mark.parametrize("tool", PRINTED)
def test_shell_session_runs(tool: str, make_run: Serving) -> None:
    require_tool(tool)
    play_session(tool, make_run)


def test_shell_sessions_are_those_of_the_page() -> None:
    assert set(SESSIONS) == set(PRINTED)
    installed = (ROOT / "tools" / "client_tools.sh").read_text(encoding="utf-8")
    for module in re.findall(r"go install (\S+@v[\d.]+)", PAGE.read_text(encoding="utf-8")):
        assert module in installed, "the version that is tested is the version that the page tells to install"
