"""Settings of the reader's own that `demo --serve` serves with, beside those that it makes itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
        # A text of JSON is one of TOML too.
        lines = (f"{name} = {json.dumps(text, ensure_ascii=False)}\n" for name, text in self.issuer.items())
        path.touch(mode=0o600)
        path.write_text(f"{self.apps_document}\n[[apps.default.issuers]]\n{''.join(lines)}", encoding="utf-8")
        return {"SYNCBEAT_APPS_FILE": str(path)}
