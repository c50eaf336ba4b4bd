"""Settings: read once from the environment, validated, frozen. Only `cli` and `app` read them."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from syncbeat_server.errors import ConfigurationError

PREFIX = "SYNCBEAT_"
DEFAULT_APP = "default"
NAME = r"^[A-Za-z0-9_.-]{1,64}$"
"""What an app and the holder of a token may be called."""
_MAX_PORT = 65_535
_DATABASE_SCHEMES = ("postgresql", "postgres")
_REDIS_SCHEMES = ("redis", "rediss", "unix")
_MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: a key as long as the hash for HS256


class Role(StrEnum):
    """What a process does."""

    ALL = "all"
    RPC = "rpc"
    WORKER = "worker"


class LogFormat(StrEnum):
    """How log lines are written."""

    JSON = "json"
    CONSOLE = "console"


class TokenEntry(BaseModel):
    """One service or admin token: who holds it, the SHA-256 of it, and what it may call for which apps.

    Written `name:sha256-hex:methods:apps`; methods are RPC names joined by `|`, and `*` means all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    methods: frozenset[str] | None
    apps: frozenset[str] | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one entry. Raises ValueError when it is malformed."""
        parts = text.strip().split(":")
        if len(parts) != 4:
            raise ValueError("want name:sha256-hex:methods:apps ('syncbeat-server token service' prints one)")
        return cls(name=parts[0], digest=parts[1], methods=_allow_list(parts[2]), apps=_allow_list(parts[3]))


def _allow_list(text: str) -> frozenset[str] | None:
    return None if text == "*" else frozenset(name for name in text.split("|") if name)


def _token_entries(value: object) -> object:
    if isinstance(value, str):
        return tuple(TokenEntry.parse(part) for part in value.replace("\n", ",").split(",") if part.strip())
    return value


def _secrets(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = [part.strip().partition("=") for part in value.replace("\n", ",").split(",") if part.strip()]
    if any(not kid or not secret for kid, _, secret in pairs):
        raise ValueError("want kid=secret, several separated by commas")
    if len({kid for kid, _, _ in pairs}) != len(pairs):
        raise ValueError("each kid once")
    return {kid: secret for kid, _, secret in pairs}


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _port_exists(address: str) -> str:
    if address and int(address.rpartition(":")[2]) > _MAX_PORT:
        raise ValueError(f"a port is at most {_MAX_PORT}")
    return address


def _store_url(schemes: tuple[str, ...]) -> Callable[[SecretStr | None], SecretStr | None]:
    """Checks what the drivers would stumble over; what it raises never repeats the URL, which holds a password."""

    def check(url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            _check_store_url(url.get_secret_value(), schemes)
        return url

    return check


def _check_store_url(url: str, schemes: tuple[str, ...]) -> None:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"want a URL that starts with {' or '.join(f'{one}://' for one in schemes)}")
    if scheme == "unix":
        return
    # PostgreSQL takes several hosts, separated by commas, which urlsplit knows nothing of.
    for host in re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2].split(","):
        port = re.sub(r"^\[[^]]*\]", "", host).partition(":")[2]
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= _MAX_PORT):
            raise ValueError(
                f"a port is a number from 1 to {_MAX_PORT} (in a password, write / ? # @ : as %2F %3F %23 %40 %3A)"
            )


Address = Annotated[str, AfterValidator(_port_exists)]
Secrets = Annotated[dict[str, SecretStr], BeforeValidator(_secrets)]
TokenEntries = Annotated[tuple[TokenEntry, ...], BeforeValidator(_token_entries)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
DatabaseUrl = Annotated[
    SecretStr | None, BeforeValidator(_empty_is_none), AfterValidator(_store_url(_DATABASE_SCHEMES))
]
RedisUrl = Annotated[SecretStr | None, BeforeValidator(_empty_is_none), AfterValidator(_store_url(_REDIS_SCHEMES))]


class AppSettings(BaseModel):
    """One app (tenant): who issues its users' tokens and how its devices are reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jwt_secrets: Secrets = {}
    jwt_issuer: str = "syncbeat"
    jwt_audience: str = "authenticated"
    jwks_file: OptionalPath = None
    fcm_credentials: OptionalPath = None
    fcm_base_url: str = "https://fcm.googleapis.com"

    @model_validator(mode="after")
    def _safe(self) -> Self:
        for kid, secret in self.jwt_secrets.items():
            if len(secret.get_secret_value().encode()) < _MIN_SECRET_BYTES:
                raise ValueError(f"JWT_SECRETS: the secret of kid {kid!r} is shorter than {_MIN_SECRET_BYTES} bytes")
        check_base_url("FCM_BASE_URL", self.fcm_base_url)
        for name, path in (("JWKS_FILE", self.jwks_file), ("FCM_CREDENTIALS", self.fcm_credentials)):
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: there is no file {path}")
        return self


class Settings(AppSettings):
    """Everything the service can be told. Each field is the environment variable SYNCBEAT_<NAME>."""

    listen: Address = Field(default="0.0.0.0:50051", pattern=r"^.+:\d{1,5}$")  # a server listens
    ops_listen: Address = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    role: Role = Role.ALL
    workers: int = Field(default=1, ge=1, le=64)
    share_port: bool = False
    database_url: DatabaseUrl = None
    database_session_url: DatabaseUrl = None
    database_pool_size: int = Field(default=8, ge=1, le=500)
    redis_url: RedisUrl = None
    embedded_dir: OptionalPath = None
    apps_file: OptionalPath = None
    service_tokens: TokenEntries = ()
    admin_tokens: TokenEntries = ()
    delivery_lease_s: float = Field(default=30.0, ge=1.0, le=600.0)
    delivery_poll_s: float = Field(default=1.0, ge=0.02, le=60.0)
    delivery_retry_s: float = Field(default=10.0, ge=0.05, le=600.0)
    delivery_in_flight: int = Field(default=200, ge=1, le=2000)
    stream_grace_s: float = Field(default=5.0, ge=0.1, le=300.0)
    drain_s: float = Field(default=20.0, ge=0.5, le=300.0)
    reflection: bool = False
    log_format: LogFormat = LogFormat.JSON
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    apps: dict[str, AppSettings] = {}

    def store_urls(self) -> tuple[str, str] | None:
        """Where PostgreSQL and Redis are; None when the stores are ours to start.

        Raises:
            ConfigurationError: only one of them is named.
        """
        if self.database_url is None and self.redis_url is None:
            return None
        if self.database_url is None or self.redis_url is None:
            raise ConfigurationError(
                f"{PREFIX}DATABASE_URL and {PREFIX}REDIS_URL: set both, or neither for the embedded stores"
            )
        return self.database_url.get_secret_value(), self.redis_url.get_secret_value()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        digests = [entry.digest for entry in (*self.service_tokens, *self.admin_tokens)]
        if len(set(digests)) != len(digests):
            raise ValueError("SERVICE_TOKENS and ADMIN_TOKENS: the same token stands twice")
        issuers = [app.jwt_issuer for app in self.all_apps().values()]
        if len(set(issuers)) != len(issuers):
            raise ValueError("JWT_ISSUER: each app needs an issuer of its own")
        return self

    def all_apps(self) -> dict[str, AppSettings]:
        """Every app by name; `default` is what the environment itself describes."""
        own = AppSettings(**{name: getattr(self, name) for name in AppSettings.model_fields})
        return {DEFAULT_APP: own, **self.apps}


def check_base_url(name: str, url: str) -> None:
    """Raise ValueError unless `url` is https, or http to this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"{name}: not a URL") from None
    loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not parts.hostname or (parts.scheme != "https" and not (parts.scheme == "http" and loopback)):
        raise ValueError(f"{name}: want https (http only to loopback)")


def load_settings(environment: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from the environment, then from `.env`.

    Raises:
        ConfigurationError: a setting is unknown, malformed or unsafe; the message names each and the fix.
    """
    variables = dict(os.environ if environment is None else environment)
    if env_file is not None and env_file.is_file():
        variables = {**{k: v for k, v in dotenv_values(env_file).items() if v is not None}, **variables}
    values = _read_variables(variables)
    try:
        if values.get("apps_file"):
            values["apps"] = _read_apps(Path(values["apps_file"]))
        return Settings(**values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _read_variables(variables: Mapping[str, str]) -> dict[str, Any]:
    known = set(Settings.model_fields) - {"apps"}
    values: dict[str, Any] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        from_file = name.removesuffix("_file")
        if name in known:
            values[name] = text
        elif name.endswith("_file") and from_file in known:
            try:
                values[from_file] = Path(text).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                raise ConfigurationError(f"{variable}: cannot read the file {text}") from None
        else:
            raise ConfigurationError(f"{variable}: no such setting; see 'syncbeat-server check-config --list'")
    return values


def _read_apps(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{PREFIX}APPS_FILE: cannot read {path}: {type(error).__name__}") from None
    apps = table.get("apps")
    if not isinstance(apps, dict) or set(table) != {"apps"}:
        raise ConfigurationError(f"{PREFIX}APPS_FILE: want tables [apps.NAME] and nothing else")
    if DEFAULT_APP in apps:
        raise ConfigurationError(f"{PREFIX}APPS_FILE: the app {DEFAULT_APP!r} is described by the environment")
    if not all(re.fullmatch(NAME, name) for name in apps):
        raise ConfigurationError(f"{PREFIX}APPS_FILE: an app's name is 1 to 64 of A-Z a-z 0-9 _ . -")
    return apps


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"])
        prefix = f"{PREFIX}{name.upper()}: " if name else PREFIX
        lines.append(prefix + fault["msg"].removeprefix("Value error, "))
    return "; ".join(lines)


def digest_of(token: str) -> str:
    """The SHA-256 (hex) under which a service or admin token stands in the settings."""
    return hashlib.sha256(token.encode()).hexdigest()


def describe_settings() -> str:
    """Every setting with its default, one a line."""
    lines = []
    for name, field in Settings.model_fields.items():
        if name != "apps":
            default = field.get_default(call_default_factory=True)
            shown = "" if default in (None, (), {}) else str(default)
            lines.append(f"{PREFIX}{name.upper()}={shown}")
    return "\n".join(lines)
