"""compose.yaml hands on every setting that an operator may put into `.env`, and no secret of another container."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # mkdocs brings it, without types

from syncbeat_server.ops.settings.load import APPS_FILE_ONLY
from syncbeat_server.ops.settings.server import Settings
from tests.cli.test_commands import run
from tests.docs.pages import ROOT

pytestmark = pytest.mark.process

COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
# What the file itself decides: where the stores are, what it publishes, and what a container has no use for.
OWN = {"DATABASE_URL", "DATABASE_SESSION_URL", "REDIS_URL", "LISTEN", "OPS_LISTEN", "EMBEDDED_DIR", "SHARE_PORT"}


def part(name: str) -> str:
    """Return the text below a name at the start of a line or of a service."""
    return re.split(rf"^(?:  )?{name}:.*$", COMPOSE, maxsplit=1, flags=re.MULTILINE)[1].split("\n\n")[0]


def test_compose_takes_every_setting_from_the_env_file() -> None:
    passed_on = re.findall(r"^  SYNCBEAT_(\w+):$", part("x-settings"), re.MULTILINE)
    assert len(passed_on) == len(set(passed_on))
    assert set(passed_on) == {name.upper() for name in Settings.model_fields if name not in APPS_FILE_ONLY} - OWN
    assert "<<: *settings" in part("syncbeat")
    assert set(re.findall(r"SYNCBEAT_(\w+): \S", part("syncbeat"))) == {"DATABASE_URL", "REDIS_URL", "OPS_LISTEN"}


def test_compose_takes_the_variables_of_traces_from_the_env_file() -> None:
    rows = re.findall(
        r"^\| (`OTEL_.*?) \|(.*)", (ROOT / "docs/observability.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    named = {name for row in rows for name in re.findall(r"`(OTEL_\w+)", "".join(row))}
    shortened = {f"OTEL_EXPORTER_OTLP{end}" for names, _ in rows for end in re.findall(r"`(_[A-Z]+)`", names)}
    assert len(rows) > 5
    assert named | shortened <= set(re.findall(r"^  (OTEL_\w+):$", part("x-settings"), re.MULTILINE))


def test_compose_demands_the_passwords_alone() -> None:
    assert set(re.findall(r"\$\{(\w+)", COMPOSE)) == {"POSTGRES_PASSWORD", "OWNER_PASSWORD", "APP_PASSWORD"}
    assert "POSTGRES_PASSWORD" not in part("syncbeat") + part("migrate")
    assert "OWNER_PASSWORD" not in part("syncbeat")


def test_monitoring_is_off_by_default_and_open_to_this_machine_alone() -> None:
    services: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
    profiles = {name: one["profiles"] for name, one in services.items() if "profiles" in one}
    assert profiles == {"prometheus": ["monitoring"], "grafana": ["monitoring"]}
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert not [port for port in ports if not port.startswith("127.0.0.1:")]
    grafana = services["grafana"]["environment"]
    # Grafana's own default is an administrator `admin` with the password `admin`, also without a form to sign in by.
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_BASIC_ENABLED"] == "false"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    mounts = [volume.split(":")[0] for one in services.values() for volume in one.get("volumes", [])]
    assert not [path for path in mounts if path.startswith("./deploy/") and not (ROOT / path).is_dir()]


def test_token_commands_need_no_store_and_no_settings() -> None:
    # As `docker run --rm syncbeat token ...` runs them, also beside settings that are not finished.
    for arguments in (("service", "backend"), ("admin", "operator"), ("keys",)):
        done = run("token", *arguments, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none", TYPO="1")
        assert done.returncode == 0, done.stderr
        printed = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("SYNCBEAT_"))
        assert printed
        assert all(f"  {name}:\n" in COMPOSE for name in printed)
