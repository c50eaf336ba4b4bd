"""Settings of a server process, and of all apps it serves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, PrivateAttr

from syncbeat_server.defaults import (
    DEFAULT_APP,
    DELIVERY_FIRST_RETRY_S,
    DELIVERY_GIVE_UP_S,
    DELIVERY_LEASE_S,
    DELIVERY_POLL_S,
    DELIVERY_TIMEOUT_S,
    LISTEN,
    RESEND_DELAYS_S,
    STREAM_GRACE_S,
    STREAMS_PER_DEVICE,
    STREAMS_PER_USER,
)
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.cache_memory import default_cache_mib, devices_in, memory_limit_bytes
from syncbeat_server.ops.settings.app import AppSettings, issuer_faults
from syncbeat_server.ops.settings.sessions import SessionSettings
from syncbeat_server.ops.settings.slo import SloSettings
from syncbeat_server.ops.settings.sources import PREFIX
from syncbeat_server.ops.settings.types import (
    Address,
    CertificateEntries,
    DatabaseUrl,
    Networks,
    OptionalPath,
    OptionalSecret,
    ReadableFile,
    RedisUrl,
    Seconds,
    TokenEntries,
    is_loopback,
    share_a_port,
)

_LEAST_FCM_TIMEOUT_S = 10.0  # FCM's own calls take up to so long: a shorter wait makes duplicates


class Role(StrEnum):
    """Names the parts of the service that a process can run."""

    ALL = "all"
    RPC = "rpc"
    WORKER = "worker"


class PreparedStatements(StrEnum):
    """Names when connections keep prepared statements, which a pooler in transaction mode may not know."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LogFormat(StrEnum):
    """Names the forms of a log line."""

    JSON = "json"
    CONSOLE = "console"


class Settings(AppSettings, SessionSettings, SloSettings):
    """All settings of a process. Each field but `apps` is the environment variable SYNCBEAT_<NAME>."""

    listen: Address = Field(
        default=LISTEN,
        pattern=r"^.+:\d{1,5}$",
        description="The address that serves RPCs, as host:port; port 0 takes a free one.",
    )
    ops_listen: Address = Field(
        default="",
        pattern=r"^(.+:\d{1,5})?$",
        description="The address of /metrics, /healthz, /readyz and the sessions' public keys over HTTP. Empty: off.",
    )
    metrics_dir: OptionalPath = Field(
        default=None,
        description="A private folder by which any process of a machine answers /metrics for all that have it. Unset, "
        "with WORKERS above 1: a temporary one.",
    )
    events_listen: Address = Field(
        default="",
        pattern=r"^(.+:\d{1,5})?$",
        description="The address that takes signed webhooks over HTTP, for the sources of the apps file; plain HTTP, "
        "for a proxy that ends TLS. Empty: off.",
    )
    role: Role = Field(default=Role.ALL, description="The parts that the process runs.")
    workers: int = Field(default=1, ge=1, le=64, description="Processes that share the port, one a core at best.")
    share_port: bool = Field(default=False, description="Let other processes listen on the same port (SO_REUSEPORT).")
    trusted_proxies: Networks = Field(
        default=(),
        description="Networks of proxies whose x-forwarded-for is believed, read from the right: every hop, and no "
        "network that callers connect from. Empty: a caller's address is that of its connection.",
    )
    database_url: DatabaseUrl = Field(
        default=None,
        description="The PostgreSQL address, also of a transaction pooler or of several hosts. Unset, with REDIS_URL: "
        "embedded stores.",
    )
    database_session_url: DatabaseUrl = Field(
        default=None,
        description="A direct PostgreSQL address beside a pooler: for migrate, and for workers to be woken by while "
        "Redis is away.",
    )
    database_pool_size: int = Field(default=8, ge=1, le=500, description="PostgreSQL connections of each process.")
    database_processes: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None,
        description="Processes on all machines that share the database: a start warns if their pools may want more "
        "connections than it allows. Unset: WORKERS.",
    )
    database_connection_life_s: float = Field(
        default=1800.0,
        ge=1.0,
        le=86_400.0,
        description="Seconds after which a PostgreSQL connection is replaced, less up to 10 %.",
    )
    database_idle_s: float = Field(
        default=10.0,
        ge=0.1,
        le=86_400.0,
        description="Seconds after which a PostgreSQL connection without work is closed.",
    )
    database_prepared_statements: PreparedStatements = Field(
        default=PreparedStatements.AUTO,
        description="Keep prepared statements: on, off, or on connections that lead to PostgreSQL itself (auto).",
    )
    redis_url: RedisUrl = Field(
        default=None, description="The Redis address: redis://, rediss://, unix:// or redis+sentinel://."
    )
    embedded_dir: OptionalPath = Field(
        default=None, description="The folder of the embedded stores' files. Unset: a temporary one."
    )
    apps_file: OptionalPath = Field(
        default=None,
        description="The TOML file of several apps, [apps.NAME] tables with the settings of an app in lower case; "
        "read again when it changes.",
    )
    service_tokens: TokenEntries = Field(
        default=(),
        description="Tokens of services, name:sha256:methods:apps, separated by commas; 'syncbeat-server token service "
        "NAME' makes one.",
    )
    admin_tokens: TokenEntries = Field(
        default=(), description="Tokens of admins, in the same form; 'syncbeat-server token admin NAME' makes one."
    )
    service_certificates: CertificateEntries = Field(
        default=(), description="Services known by a client certificate: name:methods:apps:san, separated by commas."
    )
    cache_mib: Annotated[int, Field(ge=16, le=65_536)] | None = Field(
        default=None,
        description="MiB for the views and checked tokens that a process remembers, 6 KiB a device. Unset: a quarter "
        "of the memory of machine or container, shared by the WORKERS, from 64 to 1024.",
    )
    token_cache_size: Annotated[int, Field(ge=100, le=10_000_000)] | None = Field(
        default=None, description="Checked tokens that a process remembers. Unset: as many as CACHE_MIB holds."
    )
    view_cache_size: Annotated[int, Field(ge=100, le=10_000_000)] | None = Field(
        default=None, description="Devices' views that a process remembers. Unset: as many as CACHE_MIB holds."
    )
    tls_certificate: ReadableFile = Field(
        default=None, description="The certificate chain (PEM) of LISTEN, read again when it changes."
    )
    tls_key: ReadableFile = Field(default=None, description="The private key (PEM) of that certificate.")
    mtls_listen: Address = Field(
        default="",
        pattern=r"^(.+:\d{1,5})?$",
        description="The address for services with a client certificate. Empty: off.",
    )
    mtls_client_ca: ReadableFile = Field(
        default=None, description="The authorities (PEM) that sign those services' certificates."
    )
    delivery_lease_s: float = Field(
        default=DELIVERY_LEASE_S,
        ge=1.0,
        le=600.0,
        description="Seconds after which a crashed worker's deliveries are taken over.",
    )
    delivery_poll_s: float = Field(
        default=DELIVERY_POLL_S,
        ge=0.02,
        le=60.0,
        description="Seconds between two looks for due deliveries while nothing wakes the worker.",
    )
    delivery_retry_s: float = Field(
        default=DELIVERY_FIRST_RETRY_S,
        ge=0.05,
        le=600.0,
        description="The least wait, in seconds, before a failed attempt is repeated; it doubles from there.",
    )
    delivery_give_up_s: float = Field(
        default=DELIVERY_GIVE_UP_S, ge=1.0, le=86_400.0, description="Seconds from the first attempt to the last."
    )
    resend_s: Seconds = Field(
        default=RESEND_DELAYS_S,
        description="Seconds to wait for an answer to a silent wake-up before each resend, separated by commas. "
        "Empty: none is sent again.",
    )
    delivery_timeout_s: float = Field(
        default=DELIVERY_TIMEOUT_S,
        ge=0.1,
        le=120.0,
        description="Seconds that one attempt may take; at least 10 for FCM, whose own calls take so long.",
    )
    delivery_in_flight: int = Field(
        default=1000,
        ge=1,
        le=2000,
        description="Most attempts under way at once, of each app and process. A provider that answers at once gets "
        "200, a slower one as many as the rate needs.",
    )
    delivery_breaker_s: float = Field(
        default=60.0,
        ge=0.1,
        le=3600.0,
        description="Seconds for which a provider, or the host of a webhook, that fails is not asked.",
    )
    push_per_minute: int = Field(
        default=600_000,
        ge=60,
        le=60_000_000,
        description="Messages a minute of an FCM project, all processes together.",
    )
    push_proxy: OptionalSecret = Field(
        default=None,
        description="The HTTP proxy to FCM, its token endpoint and webhooks (http://user:password@host:port), or "
        "direct. Unset: as HTTPS_PROXY and HTTP_PROXY say. NO_PROXY excepts hosts from either.",
    )
    push_ramp_s: float = Field(
        default=60.0, ge=0.0, le=3600.0, description="Seconds in which the push rate grows from cold to its full value."
    )
    keep_deliveries_days: float = Field(
        default=30.0, ge=1.0, le=3660.0, description="Days for which ended deliveries are kept."
    )
    keep_events_days: int = Field(
        default=30,
        ge=1,
        le=3660,
        description="Days for which events are kept from when they came first; a repetition after that is a new event.",
    )
    keep_audit_days: int = Field(
        default=365,
        ge=30,
        le=3660,
        description="Days for which entries of the audit log are kept.",
    )
    event_give_up_s: float = Field(
        default=86_400.0,
        ge=1.0,
        le=604_800.0,
        description="Seconds from when an event came first after which its effects are no longer carried out.",
    )
    event_retry_s: float = Field(
        default=300.0,
        ge=1.0,
        le=86_400.0,
        description="The longest pause between two attempts to carry out the effects of an event; the first is 1 s, "
        "and each is twice as long as the one before.",
    )
    keep_tombstones_days: float = Field(
        default=30.0,
        ge=1.0,
        le=3660.0,
        description="Days for which devices are told that a key was deleted; one that returns later lists the scope "
        "anew.",
    )
    stream_grace_s: float = Field(
        default=STREAM_GRACE_S,
        ge=0.1,
        le=300.0,
        description="Seconds that a device with an open stream has to show a change before it is pushed to.",
    )
    streams_per_user: int = Field(
        default=STREAMS_PER_USER, ge=1, le=100_000, description="Open WatchHints streams of one user on a process."
    )
    streams_per_device: int = Field(
        default=STREAMS_PER_DEVICE, ge=1, le=100_000, description="Open WatchHints streams of one device on a process."
    )
    capacity_rps: Annotated[float, Field(gt=0.0, le=1e9)] | None = Field(
        default=None,
        description="Requests a second that all processes together can serve. Unset: only "
        "measured overload stretches intervals.",
    )
    connection_age_s: float = Field(
        default=1800.0,
        ge=1.0,
        le=86_400.0,
        description="Seconds for which a connection takes new calls, moved by up to 10 %; streams end at the same age, "
        "or at 30 minutes.",
    )
    max_in_flight: int = Field(
        default=2_000, ge=1, le=1_000_000, description="Calls under way in a process above which polls are refused."
    )
    drain_s: float = Field(
        default=20.0, ge=0.5, le=300.0, description="Seconds that calls and attempts under way have to end at a stop."
    )
    reflection: bool = Field(default=False, description="Serve gRPC reflection.")
    trace_callers: bool = Field(
        default=False,
        description="Take the trace context that callers send as the parent of their spans. Callers decide then what "
        "is sampled, before anyone knows who they are.",
    )
    revision: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._+-]{0,64}$",
        description="The revision of the source that runs, such as a commit: GetStatus tells it.",
    )
    log_format: LogFormat = Field(default=LogFormat.JSON, description="The form of log lines.")
    log_level: str = Field(
        default="INFO",
        pattern=r"^(DEBUG|INFO|WARNING|ERROR)$",
        description="The least level that is logged.",
    )
    apps: dict[str, AppSettings] = Field(default_factory=dict, description="The other apps, by name.")

    _secret_files: dict[str, Path] = PrivateAttr(default_factory=dict)

    @property
    def secret_files(self) -> dict[str, Path]:
        """Return the file of each setting that is read again while a process runs, if it was given by one."""
        return self._secret_files

    def store_urls(self) -> tuple[str, str] | None:
        """Return the addresses of PostgreSQL and Redis; None when the service is to run embedded stores.

        Raises:
            ConfigurationError: only one of the two is set.
        """
        if self.database_url is None and self.redis_url is None:
            return None
        if self.database_url is None or self.redis_url is None:
            raise ConfigurationError(
                f"{PREFIX}DATABASE_URL and {PREFIX}REDIS_URL: set both, or neither for the embedded stores"
            )
        return self.database_url.get_secret_value(), self.redis_url.get_secret_value()

    @property
    def cached_devices(self) -> int:
        """Return how many devices' views and tokens a process remembers, unless a number is set."""
        mib = self.cache_mib or default_cache_mib(memory_limit_bytes(), self.workers)
        return devices_in(mib)

    def all_apps(self) -> dict[str, AppSettings]:
        """Return every app by name; the default app is the one that the environment itself describes."""
        # The parts were validated with these settings.
        own = AppSettings.model_construct(**{name: getattr(self, name) for name in AppSettings.model_fields})
        return {DEFAULT_APP: own, **self.apps}

    def require_shared_port(self) -> None:
        """Raise ConfigurationError if several processes are to share a port that nobody knows."""
        if self.workers > 1 and self.events_listen.endswith(":0"):
            raise ConfigurationError(
                f"{PREFIX}WORKERS: several processes share one port, so {PREFIX}EVENTS_LISTEN needs one"
            )
        if self.workers > 1 and self.listen.endswith(":0"):
            raise ConfigurationError(f"{PREFIX}WORKERS: several processes share one port, so {PREFIX}LISTEN needs one")

    def faults(self) -> Iterator[str]:
        """Yield the faults of listeners and of what several apps share, beside those of the default app."""
        yield from super().faults()
        digests = [entry.digest for entry in (*self.service_tokens, *self.admin_tokens)]
        if len(set(digests)) != len(digests):
            yield "SERVICE_TOKENS and ADMIN_TOKENS: the same token stands twice"
        yield from issuer_faults(self.all_apps())
        # A fake on this machine answers faster.
        if self.delivery_timeout_s < _LEAST_FCM_TIMEOUT_S and any(
            app.fcm_credentials is not None and not is_loopback(app.fcm_base_url) for app in self.all_apps().values()
        ):
            yield f"DELIVERY_TIMEOUT_S: at least {_LEAST_FCM_TIMEOUT_S:g} s for FCM"
        yield from self._listener_faults()

    def _listener_faults(self) -> Iterator[str]:
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "TLS_CERTIFICATE and TLS_KEY: set both, or neither"
        elif self.mtls_listen and (self.tls_certificate is None or self.mtls_client_ca is None):
            yield "MTLS_LISTEN: needs TLS_CERTIFICATE, TLS_KEY and MTLS_CLIENT_CA"
        if bool(self.service_certificates) != bool(self.mtls_listen):
            yield "MTLS_LISTEN and SERVICE_CERTIFICATES: set both, or neither"
        if len({entry.san for entry in self.service_certificates}) != len(self.service_certificates):
            yield "SERVICE_CERTIFICATES: the same SAN stands twice"
        listeners = {
            "LISTEN": self.listen,
            "MTLS_LISTEN": self.mtls_listen,
            "OPS_LISTEN": self.ops_listen,
            "EVENTS_LISTEN": self.events_listen,
        }
        for (first, one), (second, other) in itertools.combinations(listeners.items(), 2):
            if one and other and share_a_port(one, other):
                yield f"{first} and {second}: the same port of the same address: each listener needs its own"
