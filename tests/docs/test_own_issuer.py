"""The first hour with tokens of one's own issuer: `make run` with a recipe, a device, a change on its stream."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import serving
from tests.docs.shell_sessions import run_shell, running_shell
from tests.docs.test_make_run import preamble
from tests.support.presets import PRESETS, SECRET, Preset

pytestmark = pytest.mark.process

BY_NAME = {preset.name: preset for preset in PRESETS}


def token_of_today(preset: Preset, **changes: Any) -> str:
    """A token in the shape in which the issuer makes them, issued now."""
    now = int(time.time())
    return preset.token({"iat": now, "exp": now + 600, **changes})


@pytest.mark.parametrize("name", ["supabase", "firebase", "auth0"])
def test_own_issuer_tokens_play_the_product(name: str, tmp_path: Path) -> None:
    preset = BY_NAME[name]
    variables = {f"SYNCBEAT_{key}": text for key, text in preset.settings.items()} | {"SYNCBEAT_JWT_PROFILE": name}
    if name == "supabase":  # a project with the legacy secret
        variables["SYNCBEAT_JWT_SECRETS"] = f"legacy={SECRET}"
        token = token_of_today(preset, **{"^alg": "HS256", "^kid": "Rb1Q0a9cEVDKYkrr"})
    else:
        (tmp_path / "keys.json").write_text(preset.jwks())
        variables["SYNCBEAT_JWKS_FILE"] = str(tmp_path / "keys.json")
        token = token_of_today(preset)
    with serving(["demo", "--serve"], "RevokeUser", {"SYNCBEAT_LISTEN": "127.0.0.1:0", **variables}) as running:
        assert any(preset.settings["JWT_ISSUER"] in line for line in running.lines)
        given = preamble(running, "buf") + f"export USER_TOKEN={token}\n"
        member = {"scope": "chat:7", "members": [{"user_id": str(preset.claims["sub"]), "role": "ROLE_READER"}]}
        run_shell(given + f"call $SERVICE_TOKEN DirectoryService/AddScopeMembers '{json.dumps(member)}'", {})
        device = '{"device_id": "phone", "platform": "PLATFORM_IOS"}'
        run_shell(given + f"call $USER_TOKEN DirectoryService/RegisterDevice '{device}'", {})
        with running_shell(given + 'call $USER_TOKEN SyncService/WatchHints \'{"device_id": "phone"}\'', {}) as phone:
            phone.wait_for("checkpoint")
            change = json.dumps({"changes": [{"scope": "chat:7", "key": "k", "merge_patch_json": '"hi"'}]})
            run_shell(given + f"call $SERVICE_TOKEN SyncService/PublishChanges '{change}'", {})
            phone.wait_for("hi")
        wrong = token_of_today(
            preset, exp=int(time.time()) - 600, **{"^alg": "HS256", "^kid": "x"} if name == "supabase" else {}
        )
        run_shell(given + f"! call {wrong} SyncService/GetHint '{{}}'", {})
        log = Path(running.after("Its log is ").partition(",")[0]).read_text(encoding="utf-8")
        assert '"cause": "expired"' in log
        assert wrong not in log


def test_own_issuer_without_its_name_is_told(tmp_path: Path) -> None:
    command = "! syncbeat-server demo --serve"
    told = run_shell(command, {"SYNCBEAT_JWT_SECRETS": f"k={SECRET}", "HOME": str(tmp_path)})
    assert told == "syncbeat-server: SYNCBEAT_JWT_ISSUER: set it, to what your tokens have as `iss`\n"
