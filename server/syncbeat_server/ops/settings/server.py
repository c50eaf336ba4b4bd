"""Settings: read once from the environment, validated, frozen. Only `cli` and `app` read them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.descriptions import SettingDescription, described_settings
from syncbeat_server.ops.settings.issuer import RUNNING, IssuerSettings
from syncbeat_server.ops.settings.sessions import SessionSettings
from syncbeat_server.ops.settings.sources import PREFIX, read_app_tables, read_values
from syncbeat_server.ops.settings.types import (
    NAME,
    Address,
    CertificateEntries,
    DatabaseUrl,
    Networks,
    OptionalPath,
    OptionalSecret,
    RedisUrl,
    Seconds,
    TokenEntries,
    check_base_url,
    check_file,
    check_public,
    is_loopback,
)

DEFAULT_APP = "default"
DEFAULT_STALENESS_S = 15.0
"""The mean staleness that an app is to have when its settings name no target."""
_LONGEST_POLL_S = 14_400.0
_IN_APPS_FILE = frozenset({"apps", "issuers", "templates"})
_OF_DEFAULT = frozenset({"issuers", "templates"})
_SHOWN_PART = 31


class Role(StrEnum):
    """What a process does."""

    ALL = "all"
    RPC = "rpc"
    WORKER = "worker"


class LogFormat(StrEnum):
    """How log lines are written."""

    JSON = "json"
    CONSOLE = "console"


class PreparedStatements(StrEnum):
    """Whether connections to PostgreSQL keep prepared statements, which a pooler in transaction mode may not know."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Scheduling(StrEnum):
    """What decides when an app's devices poll: our own policy, or a simpler one to compare it with."""

    ADAPTIVE = "adaptive"
    SQRT_EWMA = "sqrt-ewma"
    TIER_TABLE = "tier-table"
    FIXED = "fixed-30s"


class TemplateText(BaseModel):
    """What a template says in one locale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    body: str = ""


class AppSettings(IssuerSettings):
    """One app (tenant): who issues its users' tokens, how its devices are reached and how fresh they are to be.

    `issuers` are those beside the first one. They and `templates` (name, locale, text) stand in the apps file only.
    Of the three targets one is in force: a mean staleness of 15 s unless another is set.
    """

    issuers: tuple[IssuerSettings, ...] = ()
    """More issuers of the app's tokens, beside the first."""
    session_issuer: str = ""
    """Claim `iss` of our own sessions' tokens. Empty: `syncbeat:` and the app's name."""
    fcm_credentials: OptionalPath = None
    """File with the service account's JSON, read anew when it changes. None, and no webhook: pushes are only
    logged."""
    fcm_base_url: str = "https://fcm.googleapis.com"
    """Address of FCM HTTP v1; another one is for tests."""
    webhook_url: str = ""
    """Relay of yours that takes pushes as JSON: instead of FCM, or beside it for when FCM cannot be reached."""
    webhook_token: OptionalSecret = None
    """Bearer token that the relay is called with."""
    webhook_private: bool = False
    """Lets the relay be on this machine or in a private network; else names that lead there are not followed."""
    max_per_day: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Messages a day on each device whose user set no maximum; none: no maximum."""
    templates: dict[str, dict[str, TemplateText]] = Field(default_factory=dict)
    """Texts of notifications: a table for each template, with `title` and `body` for `default` and each locale."""
    staleness_target_s: Annotated[float, Field(ge=1.0, le=86_400.0)] | None = None
    """Target: mean age of changes when a device hears of them; 15 s where an app names no target."""
    staleness_p95_s: Annotated[float, Field(ge=2.0, le=86_400.0)] | None = None
    """Target: age that 95 of 100 changes keep to. At most one of the three targets is set."""
    requests_per_day: Annotated[int, Field(ge=100, le=10**12)] | None = None
    """Target: polls and fetches of all the app's devices in a day."""
    poll_floor_s: float = Field(default=5.0, ge=1.0, le=3_600.0)
    """Shortest poll interval, whatever the policy and boosts."""
    poll_cap_s: Annotated[float, Field(ge=5.0, le=14_400.0)] | None = None
    """Longest poll interval in the foreground where no push arrives. Empty: five times the mean target, four times a
    p95 (at least 75 s), 4 hours with a budget."""
    policy: Scheduling = Scheduling.ADAPTIVE
    """Decides poll intervals: our own policy, or a simpler one to compare it with."""

    @property
    def longest_poll_s(self) -> float:
        """The longest interval of a device that no push reaches: five times the mean target unless it is set.

        Shorter caps cost more requests than they spare staleness: docs/polling-analysis.md. A budget is to be kept
        whatever staleness comes of it.
        """
        if self.poll_cap_s is not None:
            return self.poll_cap_s
        if self.requests_per_day is not None:
            return _LONGEST_POLL_S
        usual = 5.0 * (self.staleness_target_s or DEFAULT_STALENESS_S)
        return min(_LONGEST_POLL_S, max(self.poll_floor_s, usual, 4.0 * (self.staleness_p95_s or 0.0)))

    @model_validator(mode="after")
    def _one_target_that_can_be_met(self) -> Self:
        if sum(one is not None for one in (self.staleness_target_s, self.staleness_p95_s, self.requests_per_day)) > 1:
            raise ValueError(
                "STALENESS_TARGET_S, STALENESS_P95_S, REQUESTS_PER_DAY: set one of them, since each decides the others"
            )
        if self.longest_poll_s < self.poll_floor_s:
            raise ValueError("POLL_CAP_S: at least POLL_FLOOR_S")
        # Polling at the floor for ever gives half of it as the mean, and 0.95 of it as the p95.
        by_mean = self.staleness_p95_s is None and self.requests_per_day is None
        if by_mean and (self.staleness_target_s or DEFAULT_STALENESS_S) < self.poll_floor_s / 2:
            raise ValueError(
                "STALENESS_TARGET_S: at least half of POLL_FLOOR_S, or no polling meets it "
                f"({DEFAULT_STALENESS_S:g} s unless it is set)"
            )
        if self.staleness_p95_s is not None and self.staleness_p95_s < self.poll_floor_s:
            raise ValueError("STALENESS_P95_S: at least POLL_FLOOR_S, or no polling meets it")
        return self

    @model_validator(mode="after")
    def _safe_provider(self, info: ValidationInfo) -> Self:
        check_base_url("FCM_BASE_URL", self.fcm_base_url)
        if info.context != RUNNING:
            check_file("FCM_CREDENTIALS", self.fcm_credentials)
        if self.webhook_url:
            check_base_url("WEBHOOK_URL", self.webhook_url)
            if not self.webhook_private:
                check_public("WEBHOOK_URL", self.webhook_url, "WEBHOOK_PRIVATE=true")
        return self


class Settings(AppSettings, SessionSettings):
    """Everything the service can be told. Each field is the environment variable SYNCBEAT_<NAME>."""

    listen: Address = Field(default="0.0.0.0:50051", pattern=r"^.+:\d{1,5}$")  # a server listens
    """Address of the gRPC server; port 0 takes a free one."""
    ops_listen: Address = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    """Address for operators, over HTTP: /metrics, /healthz, /readyz, /.well-known/jwks.json. Empty: off."""
    role: Role = Role.ALL
    """Work of a process: RPCs, deliveries (`worker`), or all."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the port."""
    share_port: bool = False
    """Lets other processes listen on the same port; set by WORKERS for its processes."""
    trusted_proxies: Networks = ()
    """Networks of proxies whose `x-forwarded-for` is believed, read from the right. Empty: nobody's."""
    database_url: DatabaseUrl = None
    """PostgreSQL by the service's login, postgresql://...; several hosts may stand in it. Empty: embedded stores."""
    database_session_url: DatabaseUrl = None
    """Direct connection beside a pooler: for `migrate`, and for a worker to be woken by while Redis is away."""
    database_pool_size: int = Field(default=8, ge=1, le=500)
    """Connections to PostgreSQL of each process."""
    database_prepared_statements: PreparedStatements = PreparedStatements.AUTO
    """Keep prepared statements: on, off, or on connections that lead to PostgreSQL itself and to no pooler."""
    redis_url: RedisUrl = None
    """Redis or Valkey: redis(s)://, redis+sentinel://, rediss+sentinel:// or unix://. Empty: embedded stores."""
    embedded_dir: OptionalPath = None
    """Folder that keeps the embedded stores' files. None: a temporary one."""
    apps_file: OptionalPath = None
    """TOML file of the other apps, of templates and of more issuers; read anew when it changes."""
    service_tokens: TokenEntries = ()
    """Services by token; 'syncbeat-server token service NAME' makes one."""
    admin_tokens: TokenEntries = ()
    """Operators by token; 'syncbeat-server token admin NAME' makes one."""
    service_certificates: CertificateEntries = ()
    """Services by the SAN of their client certificate, at MTLS_LISTEN."""
    token_cache_size: int = Field(default=20_000, ge=100, le=1_000_000)
    """Checked tokens, and standings of sessions and users, that a process remembers."""
    view_cache_size: int = Field(default=20_000, ge=100, le=1_000_000)
    """Devices whose scopes a process remembers for GetHint."""
    tls_certificate: OptionalPath = None
    """Certificate chain (PEM) of the gRPC server, read anew when it changes. None: plain gRPC."""
    tls_key: OptionalPath = None
    """Private key (PEM) of that certificate."""
    mtls_listen: Address = Field(default="", pattern=r"^(.+:\d{1,5})?$")
    """Address for services with a client certificate. Empty: off."""
    mtls_client_ca: OptionalPath = None
    """Authorities (PEM) that sign those certificates."""
    delivery_lease_s: float = Field(default=30.0, ge=1.0, le=600.0)
    """Time for which a worker owns the deliveries it took; those of a dead worker are free after it."""
    delivery_poll_s: float = Field(default=1.0, ge=0.02, le=60.0)
    """Interval at which a worker looks for due deliveries that nobody woke it for."""
    delivery_retry_s: float = Field(default=10.0, ge=0.05, le=600.0)
    """Shortest wait before another attempt of a delivery; the longest doubles with each attempt, up to 10 min."""
    delivery_give_up_s: float = Field(default=3600.0, ge=1.0, le=86_400.0)
    """Time from a delivery's first attempt to its last."""
    resend_s: Seconds = (15.0, 30.0, 60.0, 120.0)
    """Waits after which a silent wake-up that nobody answered is sent again. Empty: never."""
    delivery_timeout_s: float = Field(default=15.0, ge=0.1, le=120.0)
    """Longest time of one attempt; at least 10 s where pushes go to FCM itself."""
    delivery_in_flight: int = Field(default=200, ge=1, le=2000)
    """Attempts at once of each app and process."""
    delivery_breaker_s: float = Field(default=60.0, ge=0.1, le=3600.0)
    """Time for which an app's provider is left alone after its breaker has opened."""
    push_per_minute: int = Field(default=600_000, ge=60, le=60_000_000)
    """Rate of an FCM project, shared by all processes."""
    push_proxy: OptionalSecret = None
    """HTTP proxy to FCM, its token endpoint and webhooks, or `direct`. None: as HTTPS_PROXY and NO_PROXY say."""
    push_ramp_s: float = Field(default=60.0, ge=0.0, le=3600.0)
    """Time in which that rate is reached from cold."""
    keep_deliveries_days: float = Field(default=30.0, ge=1.0, le=3660.0)
    """Time for which deliveries that have ended, and what belongs to them, are kept."""
    keep_tombstones_days: float = Field(default=30.0, ge=1.0, le=3660.0)
    """Time for which devices are told that a key was deleted; one that comes back later lists the scope anew."""
    stream_grace_s: float = Field(default=5.0, ge=0.1, le=300.0)
    """Time for a device with an open stream to fetch what it was told of before it is pushed to."""
    streams_per_user: int = Field(default=50, ge=1, le=100_000)
    """WatchHints streams of one user on a process."""
    streams_per_device: int = Field(default=10, ge=1, le=100_000)
    """WatchHints streams of one device on a process."""
    capacity_rps: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """Requests a second that all processes together can serve; none: intervals are not stretched for it."""
    connection_age_s: float = Field(default=1800.0, ge=1.0, le=86_400.0)
    """Time for which a connection takes new calls, moved by up to 10 %."""
    max_in_flight: int = Field(default=2_000, ge=1, le=1_000_000)
    """Calls under way in a process above which polls are refused."""
    drain_s: float = Field(default=20.0, ge=0.5, le=300.0)
    """Time for calls and streams to end after SIGTERM."""
    reflection: bool = False
    """Serves grpc.reflection."""
    log_format: LogFormat = LogFormat.JSON
    """Form of log lines."""
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    """Least level that is logged."""
    apps: dict[str, AppSettings] = Field(default_factory=dict)
    """Other apps, by name."""

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
        issuers = [name for app_id, app in self.all_apps().items() for name in _issuers(app_id, app)]
        if len(set(issuers)) != len(issuers):
            raise ValueError("JWT_ISSUER, SESSION_ISSUER: each issuer belongs to one app and stands once")
        return self

    @model_validator(mode="after")
    def _patient_with_fcm(self) -> Self:
        # FCM's own calls take up to 10 s: a shorter wait makes duplicates. Only a fake on this machine is faster.
        if self.delivery_timeout_s < 10.0:
            for app in self.all_apps().values():
                if app.fcm_credentials is not None and not is_loopback(app.fcm_base_url):
                    raise ValueError("DELIVERY_TIMEOUT_S: at least 10 s for FCM")
        return self

    @model_validator(mode="after")
    def _safe_listeners(self, info: ValidationInfo) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS_CERTIFICATE and TLS_KEY: set both, or neither")
        for name in ("tls_certificate", "tls_key", "mtls_client_ca") if info.context != RUNNING else ():
            check_file(name.upper(), getattr(self, name))
        if self.mtls_listen and (self.tls_certificate is None or self.mtls_client_ca is None):
            raise ValueError("MTLS_LISTEN: needs TLS_CERTIFICATE, TLS_KEY and MTLS_CLIENT_CA")
        if bool(self.service_certificates) != bool(self.mtls_listen):
            raise ValueError("MTLS_LISTEN and SERVICE_CERTIFICATES: set both, or neither")
        if len({entry.san for entry in self.service_certificates}) != len(self.service_certificates):
            raise ValueError("SERVICE_CERTIFICATES: the same SAN stands twice")
        return self

    def all_apps(self) -> dict[str, AppSettings]:
        """Every app by name; `default` is what the environment itself describes."""
        # What they consist of was checked as part of these settings.
        own = AppSettings.model_construct(**{name: getattr(self, name) for name in AppSettings.model_fields})
        return {DEFAULT_APP: own, **self.apps}


def reread_apps(settings: Settings, document: bytes) -> dict[str, AppSettings]:
    """Every app as the apps file, whose content is `document`, describes it beside what the environment said.

    Raises:
        ConfigurationError: it cannot be used; a start would refuse it too.
    """
    if settings.apps_file is None:
        return settings.all_apps()
    said = {name: getattr(settings, name) for name in Settings.model_fields if name not in _IN_APPS_FILE}
    return _checked(said, read_app_tables(settings.apps_file, document), running=True).all_apps()


def session_issuer(app_id: str, app: AppSettings) -> str:
    """What tokens of our own sessions of an app name as their issuer."""
    return app.session_issuer or f"syncbeat:{app_id}"


def _issuers(app_id: str, app: AppSettings) -> list[str]:
    return [app.jwt_issuer, session_issuer(app_id, app), *(issuer.jwt_issuer for issuer in app.issuers)]


def load_settings(environment: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from the environment, then from `.env`.

    Raises:
        ConfigurationError: a setting is unknown, malformed or unsafe; the message names each and the fix.
    """
    known = set(Settings.model_fields) - _IN_APPS_FILE
    said = read_values(os.environ if environment is None else environment, env_file, known)
    return _checked(said, read_app_tables(Path(said["apps_file"])) if said.get("apps_file") else {}, running=False)


def _checked(said: Mapping[str, Any], tables: dict[str, dict[str, Any]], *, running: bool) -> Settings:
    default = tables.pop(DEFAULT_APP, {})
    if set(default) - _OF_DEFAULT:
        raise ConfigurationError(
            f"{PREFIX}APPS_FILE: the app {DEFAULT_APP!r} is described by the environment, but for its more `issuers` "
            "and its `templates`"
        )
    if not all(re.fullmatch(NAME, name) for name in tables):
        raise ConfigurationError(f"{PREFIX}APPS_FILE: an app's name is 1 to 64 of A-Z a-z 0-9 _ . -")
    values = {**said, **default, "apps": tables}
    try:
        return Settings.model_validate(values, context=RUNNING if running else None)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        # Keys of tables stand in it too, which may be a secret in the wrong place; those have 32 characters or more.
        name = ".".join(str(part)[:_SHOWN_PART] for part in fault["loc"])
        prefix = f"{PREFIX}{name.upper()}: " if name else PREFIX
        lines.append(prefix + fault["msg"].removeprefix("Value error, "))
    return "; ".join(lines)


def digest_of(token: str) -> str:
    """The SHA-256 (hex) under which a service or admin token stands in the settings."""
    return hashlib.sha256(token.encode()).hexdigest()


def describe_settings() -> str:
    """Every setting as a line of `.env` with its default, under a comment that says what it does."""
    return "\n\n".join(_described(one) for one in described_settings(Settings) if one.name not in _IN_APPS_FILE)


def _described(one: SettingDescription) -> str:
    kind = f"{one.kind}, {one.bounds}" if one.bounds else one.kind
    return f"# {one.text} ({kind.replace('`', '')})\n{PREFIX}{one.name.upper()}={one.default}"
