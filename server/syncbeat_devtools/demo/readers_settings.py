"""Settings of the reader's own that `demo --serve` serves with, beside those that it makes itself."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncbeat_server.defaults import DEFAULT_APP

MADE_HERE = frozenset(
    {
        *("database_url", "database_session_url", "redis_url", "embedded_dir", "role"),
        *("fcm_credentials", "fcm_base_url", "push_proxy", "session_keys", "session_secrets"),
        *("tls_certificate", "tls_key", "mtls_listen", "mtls_client_ca", "service_certificates"),
    }
)
"""Settings that the demo makes itself: stores, a fake FCM, keys, and commands for a port without TLS."""


@dataclass(frozen=True)
class ReadersSettings:
    """Holds what the reader has set.

    Attributes:
        variables: The environment variables that the server gets as they are.
        issuer: An issuer of the reader's own, by the names of the apps file, whose tokens are let in beside those of
            the demo; empty: there is none.
        apps_document: The text of the reader's apps file.
        service_tokens: Entries of the reader's own services.
        listen: The address to serve RPCs at; empty: the demo's.
        ops_listen: The address of /metrics; empty: none.
        unused: Variables of settings that the demo makes itself.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    issuer: Mapping[str, str] = field(default_factory=dict)
    apps_document: str = ""
    service_tokens: str = ""
    listen: str = ""
    ops_listen: str = ""
    unused: tuple[str, ...] = ()

    def write_apps_file(self, folder: Path) -> dict[str, str]:
        """Write an apps file with the issuer beside what the reader's has; return the setting that names it."""
        if not self.issuer:
            return {}  # the reader's own, if there is one, is among the variables
        path = folder / "apps.toml"
        path.touch(mode=0o600)
        path.write_text(_with_issuer(self.apps_document, self.issuer), encoding="utf-8")
        return {"SYNCBEAT_APPS_FILE": str(path)}


def _with_issuer(document: str, issuer: Mapping[str, str]) -> str:
    """Return an apps file that has this issuer too, of the app `default`; the other lines keep their numbers."""
    apps = tomllib.loads(document).get("apps", {})
    default = apps.get(DEFAULT_APP, {})
    own = default.get("issuers", [])
    lines = "".join(f"{name} = {_toml(text)}\n" for name, text in issuer.items())
    appended = f"{document}\n[[apps.{DEFAULT_APP}.issuers]]\n{lines}"
    try:
        tomllib.loads(appended)
    except tomllib.TOMLDecodeError:
        # A list written as `issuers = [...]`, or `default` as `{...}`, takes no table after it.
        merged = {**apps, DEFAULT_APP: {**default, "issuers": [*own, issuer] if isinstance(own, list) else own}}
        return f"apps = {_toml(merged)}\n"
    return appended


def _toml(value: Any) -> str:
    """Return what TOML reads as this value."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(name)} = {_toml(one)}' for name, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | bool):  # but for one character a text of JSON is one of TOML
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
