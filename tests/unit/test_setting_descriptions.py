"""The words for settings are those of the fields that check them."""

from __future__ import annotations

from syncbeat_server.ops.settings.descriptions import SettingDescription, described_settings
from syncbeat_server.ops.settings.server import AppSettings, Settings

DESCRIBED = {one.name: one for one in described_settings(Settings)}


def test_every_setting_has_a_description() -> None:
    assert set(DESCRIBED) == set(Settings.model_fields)
    assert not [one.name for one in DESCRIBED.values() if len(one.text) < 10 or not one.text.endswith(".")]
    assert not [one.name for one in described_settings(AppSettings) if not one.text]


def test_bounds_and_defaults_are_those_that_are_checked() -> None:
    assert DESCRIBED["workers"] == SettingDescription(
        "workers", "whole number", "1", "1 to 64", "Processes that share the port."
    )
    assert (DESCRIBED["max_per_day"].default, DESCRIBED["max_per_day"].bounds) == ("", "1 to 10000")
    assert (DESCRIBED["resend_s"].default, DESCRIBED["resend_s"].bounds) == ("15,30,60,120", "0.1 to 3600")
    assert DESCRIBED["capacity_rps"].bounds == "above 0, to 1000000000"
    assert DESCRIBED["listen"].default == "0.0.0.0:50051"


def test_kinds_of_settings_name_choices_and_forms() -> None:
    assert DESCRIBED["role"].kind == "`all`, `rpc`, `worker`"
    assert DESCRIBED["log_level"].kind == "`DEBUG`, `INFO`, `WARNING`, `ERROR`"
    assert DESCRIBED["jwt_subjects"].kind == "`uuid`, `any`"
    assert DESCRIBED["jwt_secrets"].kind == "`kid=secret`; several by commas"
    assert DESCRIBED["service_tokens"].kind == "`name:sha256-hex:methods:apps`; several by commas"
    assert DESCRIBED["trusted_proxies"].kind == "network; several by commas"
    assert DESCRIBED["reflection"].kind == "true or false"
    assert DESCRIBED["ops_listen"].kind == "`host:port`"
    assert DESCRIBED["templates"].kind == "tables"
