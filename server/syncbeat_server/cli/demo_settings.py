"""Reads what `demo --serve` takes from the reader's environment and `.env`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_devtools.demo.readers_settings import ReadersSettings

_READ_HERE = frozenset({"listen", "service_tokens"})


def read_readers_settings() -> ReadersSettings:
    """Return the reader's settings.

    Raises:
        ConfigurationError: a source cannot be read, or the issuer has no name.
    """
    from syncbeat_devtools.demo.readers_settings import MADE_HERE, ReadersSettings
    from syncbeat_server.ops.settings.issuer import IssuerSettings
    from syncbeat_server.ops.settings.load import APPS_FILE_ONLY
    from syncbeat_server.ops.settings.server import Settings
    from syncbeat_server.ops.settings.sources import PREFIX, read_app_tables, read_values

    known = set(Settings.model_fields) - APPS_FILE_ONLY
    given = read_values(os.environ, Path(".env"), known)
    if given.faults:
        raise ConfigurationError("\n".join(given.faults))
    texts = {name: one.text for name, one in given.texts.items() if one.text}
    of_issuer = set(IssuerSettings.model_fields)
    issuer = {name: text for name, text in texts.items() if name in of_issuer}
    if issuer and "jwt_issuer" not in issuer:
        raise ConfigurationError("SYNCBEAT_JWT_ISSUER: set it, to what your tokens have as `iss`")
    apps_file = Path(texts["apps_file"]) if "apps_file" in texts else None
    # What is not to be taken from `.env` either is set to nothing, which goes before it.
    taken = {
        f"{PREFIX}{name.upper()}": texts.get(name, "") if name not in MADE_HERE | of_issuer | _READ_HERE else ""
        for name in given.texts
    }
    return ReadersSettings(
        variables=taken,
        issuer=issuer,
        apps_document="" if apps_file is None else read_app_tables(apps_file).text,
        service_tokens=texts.get("service_tokens", ""),
        listen=texts.get("listen", ""),
        ops_listen=texts.get("ops_listen", ""),
        unused=tuple(f"{PREFIX}{name.upper()}" for name in sorted(texts.keys() & MADE_HERE)),
    )
