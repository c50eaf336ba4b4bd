"""Tests that descriptions of settings are read from the fields that validate them."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.descriptions import SettingDescription, describe_settings, format_settings
from syncbeat_server.ops.settings.load import APPS_FILE_ONLY, load_settings
from syncbeat_server.ops.settings.server import Settings

pytestmark = pytest.mark.unit

DESCRIBED = {one.name: one for one in describe_settings(Settings)}


def test_settings_each_have_a_description() -> None:
    assert set(DESCRIBED) == set(Settings.model_fields)
    assert not [one.name for one in DESCRIBED.values() if len(one.text) < 10 or not one.text.endswith(".")]
    assert not [one.name for one in describe_settings(AppSettings) if not one.text]


def test_settings_bounds_and_defaults_are_those_that_are_validated() -> None:
    assert DESCRIBED["workers"] == SettingDescription(
        "workers", "whole number", "1", "1 to 64", "Processes that share the port, one a core at best."
    )
    assert (DESCRIBED["max_per_day"].default, DESCRIBED["max_per_day"].bounds) == ("", "1 to 10000")
    assert (DESCRIBED["resend_s"].default, DESCRIBED["resend_s"].bounds) == ("15,30,60,120", "0.1 to 3600")
    assert DESCRIBED["capacity_rps"].bounds == "above 0, to 1000000000"
    assert DESCRIBED["listen"].default == "0.0.0.0:50051"


def test_settings_kinds_name_choices_and_forms() -> None:
    assert DESCRIBED["role"].kind == "`all`, `rpc`, `worker`"
    assert DESCRIBED["log_level"].kind == "`DEBUG`, `INFO`, `WARNING`, `ERROR`"
    assert DESCRIBED["jwt_subjects"].kind == "`uuid`, `any`"
    assert DESCRIBED["jwt_secrets"].kind == "`kid=secret`; several by commas"
    assert DESCRIBED["service_tokens"].kind == "`name:sha256-hex:methods:apps`; several by commas"
    assert DESCRIBED["trusted_proxies"].kind == "network; several by commas"
    assert DESCRIBED["reflection"].kind == "true or false"
    assert DESCRIBED["ops_listen"].kind == "`host:port`"
    assert DESCRIBED["templates"].kind == "tables"


def test_settings_listing_is_an_env_file_of_the_defaults(tmp_path: Path) -> None:
    listed = [entry.splitlines() for entry in format_settings().split("\n\n")]
    assert all(comment.startswith("# ") and len(comment) > 15 for comment, _ in listed)
    values = dict(line.split("=", 1) for _, line in listed)
    assert set(values) == {f"SYNCBEAT_{name.upper()}" for name in set(Settings.model_fields) - APPS_FILE_ONLY}
    (tmp_path / ".env").write_text(format_settings())
    assert load_settings({}, env_file=tmp_path / ".env") == Settings()
    floor = "# The shortest polling interval, in seconds, whatever the policy and boosts. (number, 1 to 3600)"
    assert f"{floor}\nSYNCBEAT_POLL_FLOOR_S=5\n" in format_settings()
