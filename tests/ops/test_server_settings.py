"""Settings: what is good is read, and what is bad is named with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from syncbeat_server.app.push.providers import providers
from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Role, Settings
from syncbeat_server.ops.settings.types import CertificateEntry, TokenEntry, token_digest

pytestmark = pytest.mark.unit

SECRET = "0123456789abcdef0123456789abcdef"
DIGEST = token_digest("a token")


def load(**settings: str) -> Settings:
    return load_settings({f"SYNCBEAT_{name}": value for name, value in settings.items()}, env_file=None)


def refused(**settings: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(**settings)
    return raised.value.message


def test_settings_default_to_embedded_stores() -> None:
    settings = load()
    assert settings.store_urls() is None
    assert (settings.role, settings.workers, settings.reflection) == (Role.ALL, 1, False)
    assert list(settings.all_apps()) == ["default"]
    assert load_settings({"PATH": "/bin", "HOME": "x"}, env_file=None) == settings


def test_settings_are_all_readable_from_the_environment(tmp_path: Path) -> None:
    credentials = tmp_path / "account.json"
    credentials.write_text("{}")
    settings = load(
        DATABASE_URL="postgresql://u:p@h/db",
        REDIS_URL="redis://h",
        DATABASE_POOL_SIZE="1",
        JWT_SECRETS=f"new={SECRET}, old={SECRET}x",
        SERVICE_TOKENS=f"backend:{DIGEST}:SendNotification|GetHint:shop\nother:{token_digest('b')}:*:*",
        FCM_CREDENTIALS=str(credentials),
        FCM_BASE_URL="http://127.0.0.1:8080",
        ROLE="worker",
        CAPACITY_RPS="1500",
        DELIVERY_LEASE_S="12.5",
        REFLECTION="true",
        TRUSTED_PROXIES="10.0.0.0/8, 192.0.2.7\n2001:db8::/48",
    )
    assert settings.store_urls() == ("postgresql://u:p@h/db", "redis://h")
    assert (settings.role, settings.delivery_lease_s, settings.database_pool_size) == (Role.WORKER, 12.5, 1)
    assert (settings.capacity_rps, settings.max_in_flight) == (1500.0, 2_000)
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/48"]
    assert list(settings.jwt_secrets) == ["new", "old"]
    backend, other = settings.service_tokens
    assert backend == TokenEntry(
        name="backend", digest=DIGEST, methods=frozenset({"SendNotification", "GetHint"}), apps=frozenset({"shop"})
    )
    assert (other.methods, other.apps) == (None, None)
    with pytest.raises(ValidationError):
        settings.workers = 2  # type: ignore[misc]  # frozen: that is the point


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"JWT_SECRET": SECRET}, ["JWT_SECRET:", "no such setting", "did you mean SYNCBEAT_JWT_SECRETS?"]),
        ({"APPS": "{}"}, ["APPS:", "no such setting"]),
        ({"WORKERS": "0"}, ["WORKERS:", "want whole number, 1 to 64"]),
        ({"WORKERS": "many"}, ["WORKERS:", "want whole number, 1 to 64"]),
        ({"DATABASE_POOL_SIZE": "501"}, ["DATABASE_POOL_SIZE:", "want whole number, 1 to 500"]),
        ({"LISTEN": "50051"}, ["LISTEN:", "want host:port"]),
        ({"LISTEN": "127.0.0.1:65536"}, ["LISTEN:", "at most 65535"]),
        ({"OPS_LISTEN": "127.0.0.1:99999"}, ["OPS_LISTEN:", "at most 65535"]),
        ({"FCM_BASE_URL": "http://[::1"}, ["FCM_BASE_URL:", "not a URL"]),
        ({"FCM_BASE_URL": "https://"}, ["FCM_BASE_URL:", "want https"]),
        ({"ROLE": "boss"}, ["ROLE:", "want one of all, rpc, worker"]),
        ({"REFLECTION": "maybe"}, ["REFLECTION:", "want true or false"]),
        ({"LOG_LEVEL": "LOUD"}, ["LOG_LEVEL:", "want one of DEBUG, INFO, WARNING, ERROR"]),
        ({"LOG_FORMAT": "xml"}, ["LOG_FORMAT:", "want one of json, console"]),
        ({"DELIVERY_LEASE_S": "nan"}, ["DELIVERY_LEASE_S:"]),
        ({"DRAIN_S": "inf"}, ["DRAIN_S:", "300"]),
        ({"STREAM_GRACE_S": "-1"}, ["STREAM_GRACE_S:", "0.1"]),
        ({"DATABASE_URL": "foo"}, ["DATABASE_URL:", "postgresql://"]),
        ({"DATABASE_URL": "redis://h"}, ["DATABASE_URL:", "postgresql://"]),
        ({"DATABASE_URL": "postgresql://h:notaport/x"}, ["DATABASE_URL:", "1 to 65535"]),
        ({"DATABASE_URL": "postgresql://u:pass/word@h/x"}, ["DATABASE_URL:", "%2F"]),
        ({"DATABASE_SESSION_URL": "postgresql://h:1,h:65536/x"}, ["DATABASE_SESSION_URL:", "1 to 65535"]),
        ({"REDIS_URL": "http://h"}, ["REDIS_URL:", "redis://", "rediss://", "unix://"]),
        ({"REDIS_URL": "redis://[::1]:no/0"}, ["REDIS_URL:", "1 to 65535"]),
        ({"REDIS_URL": "redis://a,b"}, ["REDIS_URL:", "redis+sentinel://"]),
        ({"REDIS_URL": "rediss://u:p@a:1,b:2/0"}, ["REDIS_URL:", "redis+sentinel://"]),
        ({"REDIS_URL": "redis+sentinel://a,b"}, ["REDIS_URL:", "<name of the primary>"]),
        ({"REDIS_URL": "redis+sentinel://a,b/"}, ["REDIS_URL:", "<name of the primary>"]),
        ({"REDIS_URL": "redis+sentinel://a,b:no/heart"}, ["REDIS_URL:", "1 to 65535"]),
        ({"JWT_SECRETS": SECRET}, ["JWT_SECRETS:", "kid=secret"]),
        ({"JWT_SECRETS": "k=short"}, ["JWT_SECRETS:", "'k'", "shorter than 32 bytes"]),
        ({"JWT_SECRETS": f"k={SECRET},k={SECRET}"}, ["JWT_SECRETS:", "each kid once"]),
        ({"SERVICE_TOKENS": "backend"}, ["SERVICE_TOKENS:", "name:sha256-hex:methods:apps", "token service"]),
        ({"SERVICE_TOKENS": "backend:a-raw-token:*:*"}, ["SERVICE_TOKENS", "entry 1", "64 hex digits"]),
        ({"ADMIN_TOKENS": f"a b:{DIGEST}:*:*"}, ["ADMIN_TOKENS", "entry 1", "want name:"]),
        (
            {"SERVICE_TOKENS": f"a:{DIGEST}:*:*", "ADMIN_TOKENS": f"b:{DIGEST}:*:*"},
            ["SERVICE_TOKENS and ADMIN_TOKENS", "twice"],
        ),
        ({"FCM_BASE_URL": "http://fcm.example"}, ["FCM_BASE_URL:", "https", "loopback"]),
        ({"FCM_BASE_URL": "ftp://127.0.0.1"}, ["FCM_BASE_URL:", "https"]),
        ({"FCM_CREDENTIALS": "/no/such.json"}, ["FCM_CREDENTIALS:", "no file", "/no/such.json"]),
        ({"JWKS_FILE": "/no/such.json"}, ["JWKS_FILE:", "no file"]),
        ({"JWT_SECRETS_FILE": "/no/such"}, ["JWT_SECRETS_FILE:", "cannot read"]),
        ({"APPS_FILE": "/no/such"}, ["APPS_FILE:", "cannot read"]),
        (
            {"STALENESS_TARGET_S": "15", "STALENESS_P95_S": "30"},
            ["STALENESS_TARGET_S, STALENESS_P95_S, REQUESTS_PER_DAY: set one"],
        ),
        ({"STALENESS_TARGET_S": "15", "REQUESTS_PER_DAY": "1000"}, ["REQUESTS_PER_DAY: set one"]),
        ({"STALENESS_TARGET_S": "2"}, ["STALENESS_TARGET_S:", "half of POLL_FLOOR_S"]),
        ({"POLL_FLOOR_S": "100"}, ["STALENESS_TARGET_S:", "half of POLL_FLOOR_S", "15 s unless it is set"]),
        ({"POLL_FLOOR_S": "100", "STALENESS_TARGET_S": "15"}, ["STALENESS_TARGET_S:", "half of POLL_FLOOR_S"]),
        ({"STALENESS_P95_S": "4"}, ["STALENESS_P95_S:", "at least POLL_FLOOR_S"]),
        ({"STALENESS_TARGET_S": "0"}, ["STALENESS_TARGET_S:", "want number, 1 to 86400"]),
        ({"STALENESS_TARGET_S": "soon"}, ["STALENESS_TARGET_S:", "want number, 1 to 86400"]),
        ({"REQUESTS_PER_DAY": "10"}, ["REQUESTS_PER_DAY:", "want whole number, 100 to"]),
        ({"POLL_FLOOR_S": "0.1"}, ["POLL_FLOOR_S:", "want number, 1 to 3600"]),
        ({"POLL_FLOOR_S": "20", "POLL_CAP_S": "10"}, ["POLL_CAP_S:", "at least POLL_FLOOR_S"]),
        ({"POLL_CAP_S": "90000"}, ["POLL_CAP_S:", "want number, 5 to 14400"]),
        ({"TRUSTED_PROXIES": "proxy.internal"}, ["TRUSTED_PROXIES:", "want networks such as"]),
        ({"TRUSTED_PROXIES": "10.0.0.1/8"}, ["TRUSTED_PROXIES:", "within 10.0.0.0/8: write the network"]),
        ({"TRUSTED_PROXIES": "10.0.0.0/8,0.0.0.0/0"}, ["TRUSTED_PROXIES:", "0.0.0.0/0 would trust everybody"]),
        ({"TRUSTED_PROXIES": "::/0"}, ["TRUSTED_PROXIES:", "::/0 would trust everybody"]),
        ({"TRUSTED_PROXIES": "::ffff:10.0.0.0/104"}, ["TRUSTED_PROXIES:", "write 10.0.0.0/8"]),
        ({"REFRESHES_PER_MINUTE": "0"}, ["REFRESHES_PER_MINUTE:", "want whole number, 1 to 1000000"]),
        ({"SESSION_SECRETS": f"k={SECRET}"}, ["SESSION_KEYS and SESSION_SECRETS: set both"]),
        ({"POLICY": "guess"}, ["POLICY:", "want one of adaptive, sqrt-ewma, tier-table, fixed-30s"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_setting_invalid_is_named_with_what_is_expected(settings: dict[str, str], named: list[str]) -> None:
    message = refused(**settings)
    assert message.startswith("SYNCBEAT_")
    for words in named:
        assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"SERVICE_TOKENS": "backend:hunter2-hunter2:*:*"},
        {"SERVICE_TOKENS": "hunter2-hunter2"},
        {"JWT_SECRETS": "hunter2-hunter2"},
        {"JWT_SECRETS": "k=hunter2-hunter2"},
        {"DATABASE_URL": "mysql://u:hunter2-hunter2@h/db"},
        {"DATABASE_URL": "postgresql://u:hunter2-hunter2@h:port/db"},
        {"DATABASE_URL": "postgresql://u:hunter2-/hunter2@h/db"},
        {"REDIS_URL": "redis://:hunter2-hunter2@h:0"},
        {"DATABASE_URL": "postgresql://u:hunter2-hunter2@h/db", "REDIS_URL": "redis://h", "WORKERS": "0"},
    ],
    ids=str,
)
def test_secret_is_never_repeated_in_errors(settings: dict[str, str]) -> None:
    assert "hunter2" not in refused(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"DATABASE_URL": "postgres://u:p%40ss@[::1]:5432,db.example:6432/db?sslmode=require"},
        {"DATABASE_URL": "postgresql://u@/db?host=/run/postgres&port=5433"},
        {"DATABASE_URL": "postgresql://u:p@ss@h:5432/db"},
        {"REDIS_URL": "rediss://:secret@h:6380/1"},
        {"REDIS_URL": "redis+sentinel://a,[::1]:26379,b/heart"},
        {"REDIS_URL": "rediss+sentinel://u:p@a:1/heart/3?sentinel_password=q"},
        {"REDIS_URL": "unix:///run/valkey.sock"},
    ],
    ids=str,
)
def test_store_urls_accept_what_drivers_accept(settings: dict[str, str]) -> None:
    (name, url), *_ = settings.items()
    value = getattr(load(**settings), name.lower())
    assert value.get_secret_value() == url


@pytest.mark.parametrize("settings", [{"DATABASE_URL": "postgresql://h/db"}, {"REDIS_URL": "redis://h"}], ids=str)
def test_store_urls_one_alone_allows_migrate_but_not_serve(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL: set both, or neither"):
        load(**settings).store_urls()


def test_settings_errors_are_all_reported_at_once() -> None:
    message = refused(WORKERS="0", ROLE="boss", DRAIN_S="never")
    assert all(name in message for name in ("SYNCBEAT_WORKERS", "SYNCBEAT_ROLE", "SYNCBEAT_DRAIN_S"))


def test_secrets_are_hidden_in_repr() -> None:
    settings = load(
        JWT_SECRETS=f"k={SECRET}", DATABASE_URL="postgresql://u:hunter2@h/db", REDIS_URL="redis://:hunter2@h"
    )
    assert SECRET not in repr(settings)
    assert "hunter2" not in f"{settings!r} {settings}"
    assert settings.jwt_secrets["k"].get_secret_value() == SECRET


def test_setting_can_come_from_a_file(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text(f"k={SECRET}\nold={SECRET}\n")
    assert list(load(JWT_SECRETS_FILE=str(secrets)).jwt_secrets) == ["k", "old"]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    assert "cannot read" in refused(REDIS_URL_FILE=str(tmp_path / "binary"))


def test_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("SYNCBEAT_WORKERS=3\nSYNCBEAT_ROLE=rpc\nOTHER=1\n")
    settings = load_settings({"SYNCBEAT_WORKERS": "2"}, env_file=env_file)
    assert (settings.workers, settings.role) == (2, Role.RPC)
    assert load_settings({}, env_file=tmp_path / "absent") == Settings()


def test_setting_empty_and_optional_is_unset() -> None:
    assert load(DATABASE_URL="", REDIS_URL="", FCM_CREDENTIALS="", JWKS_FILE="").store_urls() is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"JWKS_URL": "http://issuer.example/keys"}, "JWKS_URL: want https"),
        ({"JWT_LEEWAY_S": "31"}, "JWT_LEEWAY_S"),
        ({"JWT_SUBJECTS": "email"}, "JWT_SUBJECTS"),
        ({"UNKNOWN_USERS": "perhaps"}, "UNKNOWN_USERS"),
        ({"SESSION_KEYS": "{}"}, "SESSION_KEYS and SESSION_SECRETS: set both"),
        ({"SESSION_SECRETS": f"k={SECRET}"}, "SESSION_KEYS and SESSION_SECRETS: set both"),
        ({"SESSION_SECRETS": "k=short", "SESSION_KEYS": "{}"}, "SESSION_SECRETS: the secret of kid 'k' is shorter"),
        ({"SESSION_ISSUER": "syncbeat"}, "each issuer belongs to one app"),
        ({"TLS_KEY": __file__}, "TLS_CERTIFICATE and TLS_KEY: set both"),
        ({"TLS_KEY": "/no/such/file", "TLS_CERTIFICATE": __file__}, "TLS_KEY: there is no file"),
        ({"MTLS_LISTEN": "127.0.0.1:1", "SERVICE_CERTIFICATES": "b:*:*:b.example"}, "MTLS_LISTEN: needs"),
        ({"SERVICE_CERTIFICATES": "b:*:*:b.example"}, "MTLS_LISTEN and SERVICE_CERTIFICATES: set both"),
        ({"SERVICE_CERTIFICATES": "b:*"}, "want name:methods:apps:san"),
    ],
)
def test_setting_that_admits_too_much_is_refused(settings: dict[str, str], named: str) -> None:
    assert named in refused(**settings)


def test_client_certificate_san_may_be_a_uri() -> None:
    entry = CertificateEntry.parse("billing:GetHint|ListChanges:default:spiffe://example.org/billing")
    assert entry.san == "spiffe://example.org/billing"
    assert entry.methods == frozenset({"GetHint", "ListChanges"})
    assert entry.apps == frozenset({"default"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ()), ("5", (5.0,)), ("1, 2.5", (1.0, 2.5)), ("0", None), ("soon", None), ("4000", None), ("1," * 9, None)],
)
def test_resend_delays_setting(text: str, expected: tuple[float, ...] | None) -> None:
    if expected is None:
        assert "RESEND_S" in refused(RESEND_S=text)
    else:
        assert load(RESEND_S=text).resend_s == expected


def account(folder: Path, token_uri: str) -> Path:
    """A service account's JSON with a key of its own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path = folder / "account.json"
    told = {
        "type": "service_account",
        "project_id": "p",
        "private_key": pem,
        "client_email": "a@p",
        "private_key_id": "k",
    }
    path.write_text(json.dumps({**told, "token_uri": token_uri}))
    return path


@pytest.mark.parametrize(
    ("timeout", "base_url", "good"),
    [("5", "", False), ("10", "", True), ("5", "http://127.0.0.1:9", True), ("5", "https://example.org", False)],
)
def test_fcm_timeout_is_ten_seconds_unless_it_is_a_local_fake(
    tmp_path: Path, timeout: str, base_url: str, good: bool
) -> None:
    given = {
        "SYNCBEAT_DELIVERY_TIMEOUT_S": timeout,
        "SYNCBEAT_FCM_CREDENTIALS": str(account(tmp_path, "https://oauth2.googleapis.com/token")),
        **({"SYNCBEAT_FCM_BASE_URL": base_url} if base_url else {}),
    }
    if good:
        assert load_settings(given, env_file=None).delivery_timeout_s == float(timeout)
        return
    with pytest.raises(ConfigurationError, match="DELIVERY_TIMEOUT_S: at least 10 s"):
        load_settings(given, env_file=None)


async def test_fcm_token_endpoint_requires_https_unless_local(tmp_path: Path) -> None:
    for uri, good in (
        ("https://oauth2.googleapis.com/token", True),
        ("http://127.0.0.1:9/token", True),
        ("http://oauth2.googleapis.com/token", False),
        ("", False),
    ):
        app = AppSettings(fcm_credentials=account(tmp_path, uri))
        if good:
            first, _, project = providers(app, Settings(), SystemClock())
            await first.close()
            assert project == "fcm:p"
        else:
            with pytest.raises(ConfigurationError, match="token_uri of FCM_CREDENTIALS: "):
                providers(app, Settings(), SystemClock())


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://relay.example.org/push", False),
        ("https://8.8.8.8/push", False),
        ("https://10.0.0.5/push", True),
        ("https://[fc00::1]/push", True),
        ("https://[::ffff:10.0.0.5]/push", True),
        ("https://169.254.169.254/latest", True),
        ("http://127.0.0.1:9/push", True),
        ("http://localhost:9/push", True),
        ("https://a.localhost/push", True),
    ],
)
def test_webhook_url_in_a_private_network_needs_a_setting(url: str, private: bool) -> None:
    given = {"WEBHOOK_URL": url}
    if private:
        with pytest.raises(ConfigurationError, match="WEBHOOK_URL: a private address; WEBHOOK_PRIVATE=true"):
            load_settings({f"SYNCBEAT_{name}": value for name, value in given.items()}, env_file=None)
        given["WEBHOOK_PRIVATE"] = "true"
    settings = load_settings({f"SYNCBEAT_{name}": value for name, value in given.items()}, env_file=None)
    assert settings.webhook_url == url


def test_slo_figures_are_read_either_way() -> None:
    figures = load(SLO_FIGURES="complaints>5>20, score<4.2<3.8").slo_figures
    assert [(one.name, one.warn, one.rollback) for one in figures] == [
        ("complaints", 5.0, 20.0),
        ("score", 4.2, 3.8),
    ]
    assert load().slo_figures == ()


@pytest.mark.parametrize(
    "text",
    ["complaints", "complaints>5", "complaints>20>5", "score<3<4", "score<4<4", "a>1<2", "a>x>2", "a>1>inf", "a b>1>2"],
)
def test_slo_figure_that_is_malformed_is_refused(text: str) -> None:
    assert "SLO_FIGURES: entry 1: want name>warn>rollback" in refused(SLO_FIGURES=text)


def test_slo_settings_that_do_not_fit_are_refused() -> None:
    assert "a figure stands twice" in refused(SLO_FIGURES="a>1>2,a>2>3")
    assert "SLO_FIGURES" in refused(SLO_FIGURES=",".join(f"f{n}>1>2" for n in range(17)))
    assert "SLO_HINT_P95_S: more than SLO_CALL_P95_S" in refused(SLO_HINT_P95_S="0.3")
    for name, value in (("SLO_AVAILABILITY", "1"), ("SLO_WINDOW_SCALE", "2"), ("SLO_ERRORS", "0")):
        assert name in refused(**{name: value})
