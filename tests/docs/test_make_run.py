"""The commands that `make run` prints play the product as they stand, in two shells."""

from __future__ import annotations

import re

import pytest

from tests.docs.commands import Serving
from tests.docs.shell_sessions import find_tool, run_shell, running_shell

pytestmark = pytest.mark.process

HEADING = re.compile(r"^\d\. .*:$|^6\. .*$", re.MULTILINE)


def chapters(serving: Serving) -> list[str]:
    """Return the numbered parts of the text, without their headings; the last one is left out, it revokes the token."""
    return HEADING.split("\n".join(serving.lines))[1:-1]


def preamble(serving: Serving, tool: str) -> str:
    """Return the lines to put into each shell, with the `call` of one tool."""
    exports = [line for line in serving.lines if line.startswith("export ")]
    (call,) = [line for line in serving.lines if line.startswith("call() ") and f"{tool} " in line[:60]]
    return "\n".join((*exports, call, ""))


@pytest.mark.parametrize("tool", ["buf", "grpcurl"])
def test_make_run_commands_play_the_product(make_run: Serving, tool: str) -> None:
    if find_tool(tool) is None:
        pytest.skip(f"not run: no {tool}; sh tools/proof_tools.sh installs it where there is Go")
    given = preamble(make_run, tool)
    register, watch, publish, python, more = chapters(make_run)
    assert "phone" in run_shell(given + register, {})
    with running_shell(given + watch, {}) as watching:
        watching.wait_for("checkpoint")
        run_shell(given + publish, {})
        watching.wait_for("hi")
        watch_in_python, publish_in_python = re.findall(r"^\S*python -c '.*?'$", python, re.DOTALL | re.MULTILINE)
        with running_shell(given + watch_in_python, {}) as phone:
            phone.wait_for("cursors {")
            run_shell(given + publish_in_python, {})
            phone.wait_for("hi from Python")
        watching.wait_for("hi from Python")
    told = run_shell(given + more, {})
    assert re.search("poll_?[iI]nterval", told)
    assert re.search("notification_?[iI]d", told)
    assert re.search("refresh_?[tT]oken", told)


def test_make_run_says_where_refused_tokens_are_explained(make_run: Serving) -> None:
    log = make_run.after("Its log is ").partition(",")[0]
    variables = {**make_run.exports(), "USER_TOKEN": make_run.exports()["USER_TOKEN"][:-6] + "AAAAAA"}
    call = preamble(make_run, "buf").splitlines()[-1]
    run_shell(f"{call}\n! call $USER_TOKEN SyncService/GetHint '{{}}'", variables)
    with open(log, encoding="utf-8") as lines:
        assert any("a token was refused" in line and "signature" in line for line in lines)
