"""The commands that `make run` prints play the product as they stand, in two shells."""

from __future__ import annotations

import re
import tomllib
import urllib.request
from pathlib import Path

import pytest

from syncbeat.blocking import SyncbeatClient
from syncbeat.v1.auth_service_pb2 import InvalidateTokenCacheRequest
from syncbeat_devtools.demo.readers_settings import ReadersSettings
from syncbeat_server.ops.settings.types import token_digest
from tests.docs.commands import Serving, serving
from tests.docs.shell_sessions import run_shell, running_shell
from tests.support.ports import free_port
from tests.support.shell_sessions import require_tool

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
    require_tool(tool)
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


def test_make_run_serves_with_the_readers_settings(tmp_path: Path) -> None:
    apps, port = tmp_path / "apps.toml", free_port()
    apps.write_text('[apps.shop]\njwt_issuer = "https://shop.example"\njwt_subjects = "any"\n')
    variables = {
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_OPS_LISTEN": f"127.0.0.1:{port}",
        "SYNCBEAT_APPS_FILE": str(apps),
        "SYNCBEAT_ADMIN_TOKENS": f"operator:{token_digest('of the reader')}:*:*",
        "SYNCBEAT_REDIS_URL": "redis://127.0.0.1:1",
        "SYNCBEAT_TLS_KEY": "none.pem",
    }
    with serving(["demo", "--serve"], "RevokeUser", variables) as running:
        assert running.after("Not used of your settings").endswith(": SYNCBEAT_REDIS_URL, SYNCBEAT_TLS_KEY.")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as metrics:
            assert b"syncbeat_" in metrics.read()
        address, token = running.exports()["ADDRESS"], running.exports()["SERVICE_TOKEN"]
        with SyncbeatClient(address, token=token, tls=False, app_id="shop") as backend:
            assert backend.create_session("ann").access_token
        with SyncbeatClient(address, token="of the reader", tls=False) as operator:
            operator.auth.InvalidateTokenCache(InvalidateTokenCacheRequest(app_id="shop", all=True))


INLINE = """[apps.default]
issuers = [{ jwt_issuer = "https://a.example", jwt_secrets = "a=%s", jwt_leeway_s = 5 }]

[apps.shop]
jwt_issuer = "https://shop.example"
"""


@pytest.mark.parametrize(
    "document", [INLINE, "apps = { default = { quiet_hours_enabled = false } }\n", INLINE[-48:], ""]
)
def test_make_run_adds_an_issuer_to_any_apps_file(document: str, tmp_path: Path) -> None:
    issuer = {"jwt_issuer": "https://b.example", "jwt_audience": 'a "b" \x7f\n\U0001f600'}
    path = ReadersSettings(issuer=issuer, apps_document=document).write_apps_file(tmp_path)["SYNCBEAT_APPS_FILE"]
    before, after = (tomllib.loads(text).get("apps", {}) for text in (document, Path(path).read_text()))
    default = before.pop("default", {})
    assert after.pop("default") == {**default, "issuers": [*default.get("issuers", []), issuer]}
    assert after == before


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SYNCBEAT_LISTN": "h:1"}, "SYNCBEAT_LISTN: no such setting; did you mean SYNCBEAT_LISTEN?"),
        ({"SYNCBEAT_WORKERS": "0"}, "SYNCBEAT_WORKERS: want whole number, 1 to 64"),
    ],
)
def test_make_run_refuses_a_wrong_setting_by_its_name_once(variables: dict[str, str], told: str) -> None:
    lines = run_shell("! syncbeat-server demo --serve", {"SYNCBEAT_LISTEN": "127.0.0.1:0", **variables}).splitlines()
    assert lines[-1] == f"syncbeat-server: {told}"


def test_make_run_says_where_refused_tokens_are_explained(make_run: Serving) -> None:
    log = make_run.after("Its log is ").partition(",")[0]
    variables = {**make_run.exports(), "USER_TOKEN": make_run.exports()["USER_TOKEN"][:-6] + "AAAAAA"}
    call = preamble(make_run, "buf").splitlines()[-1]
    run_shell(f"{call}\n! call $USER_TOKEN SyncService/GetHint '{{}}'", variables)
    with open(log, encoding="utf-8") as lines:
        assert any("a token was refused" in line and "signature" in line for line in lines)
