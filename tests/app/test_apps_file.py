"""The file that names more apps: their issuers, providers and templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.load import load_settings
from tests.ops.test_server_settings import SECRET, load, refused

pytestmark = pytest.mark.unit

APPS = f"""
[apps.shop]
jwt_issuer = "https://shop.example"
jwt_secrets = {{ k = "{SECRET}" }}
"""


def test_apps_file_adds_apps(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text(APPS)
    settings = load(APPS_FILE=str(path), JWT_ISSUER="https://own.example")
    apps = settings.all_apps()
    assert list(apps) == ["default", "shop"]
    assert apps["shop"].jwt_issuer == "https://shop.example"
    assert apps["default"].jwt_issuer == "https://own.example"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("not toml", "cannot read"),
        ("x = 1", "want tables [apps.NAME]"),
        ("# all are gone", "no apps but the environment's are written [apps]"),
        ("apps = 1", "want tables [apps.NAME]"),
        ("[apps.default]\njwt_issuer = 'x'", "described by the environment"),
        ("[apps.default]\ndefault_tier = 'x'\ntypo = 1", "Not here: default_tier by SYNCBEAT_DEFAULT_TIER, typo"),
        ("[apps.shop]\ntypo = 1", "line 2: apps.shop.typo: no such setting"),
        ("[apps.'a shop']", "an app's name"),
        ("[apps.'shop|other']", "an app's name"),
        (f"[apps.{'x' * 65}]", "an app's name"),
        ("[apps.shop]", "stands once; syncbeat is of the app default and of shop: give one another jwt_issuer"),
        ("[apps.shop]\njwt_secrets = { k = 'short' }", "shorter than 32 bytes"),
        ("[apps.shop]\nfcm_base_url = 'http://fcm.example'", "FCM_BASE_URL"),
    ],
)
def test_apps_file_error_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "apps.toml"
    path.write_text(text)
    message = refused(APPS_FILE=str(path))
    assert message.startswith("SYNCBEAT_")
    assert named in message


def test_apps_file_app_may_have_several_issuers(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    issuer = 'jwt_issuer = "{}"\njwks_url = "https://issuer.example/jwks.json"\njwt_optional = ["session_id"]\n'
    default, shop = (
        f"[[apps.{app}.issuers]]\n" + issuer.format(f"https://more.{app}.example") for app in ("default", "shop")
    )
    path.write_text(APPS + default + shop)
    apps = load(APPS_FILE=str(path)).all_apps()
    assert [[one.jwt_issuer for one in app.issuers] for app in apps.values()] == [
        ["https://more.default.example"],
        ["https://more.shop.example"],
    ]
    assert apps["default"].issuers[0].jwt_optional == {"session_id"}
    path.write_text(default + default)
    assert "each issuer belongs to one app" in refused(APPS_FILE=str(path))


def test_apps_file_may_say_that_there_are_no_apps(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text("[apps]\n")
    assert list(load(APPS_FILE=str(path)).all_apps()) == ["default"]


OTHER_APP = """
[apps.other]
jwt_issuer = "other"
[apps.other.templates.x]
de = {}
"""


def test_apps_file_holds_templates(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text('[apps.default.templates.note]\ndefault = { title = "{who}" }\n' + OTHER_APP)
    settings = load_settings({"SYNCBEAT_APPS_FILE": str(path)}, env_file=None)
    assert settings.all_apps()["default"].templates["note"]["default"].title == "{who}"
    with pytest.raises(ConfigurationError, match="app 'other', template 'x': want a text for the locale 'default'"):
        AppConfiguration(settings, SystemClock())
    path.write_text('[apps.default]\nfcm_base_url = "https://example.org"\n')
    with pytest.raises(ConfigurationError, match="is described by the environment"):
        load_settings({"SYNCBEAT_APPS_FILE": str(path)}, env_file=None)
