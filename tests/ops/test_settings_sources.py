"""Tests where settings come from: a sentence tells what is wrong with their files, without a secret in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.files import MAX_BYTES
from syncbeat_server.ops.settings.load import APPS_FILE_ONLY, load_settings
from syncbeat_server.ops.settings.server import Settings
from tests.ops.test_operator_files import without_rights
from tests.support.file_damage import NOT_APPS, UNREADABLE, put

pytestmark = pytest.mark.unit

SECRET = "0123456789abcdef0123456789abcdef"
HIDDEN = "hunter2hunter2hunter2hunter2hunter2"


def refused(in_env_file: Path | None = None, /, **settings: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(in_env_file, **settings)
    return raised.value.message


def load(env_file: Path | None = None, /, **settings: str) -> Settings:
    return load_settings({f"SYNCBEAT_{name}": value for name, value in settings.items()}, env_file=env_file)


@pytest.mark.parametrize("shape", [shape for shape in UNREADABLE if shape != "gone"])
def test_env_file_unreadable_is_reported(tmp_path: Path, shape: str) -> None:
    UNREADABLE[shape](tmp_path / ".env")
    assert refused(tmp_path / ".env").startswith(".env: cannot read it: ")
    assert load(tmp_path / "absent") == Settings()


def test_env_file_without_permission_is_reported(tmp_path: Path) -> None:
    put(tmp_path / ".env", "SYNCBEAT_WORKERS=2\n")
    (tmp_path / ".env").chmod(0)
    with without_rights():
        assert "Permission denied" in refused(tmp_path / ".env")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_env_file_in_another_encoding_is_reported(tmp_path: Path, encoding: str) -> None:
    (tmp_path / ".env").write_bytes("SYNCBEAT_WEBHOOK_TOKEN=é\n".encode(encoding))
    assert refused(tmp_path / ".env").endswith("is not text in UTF-8")


def test_env_file_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfSYNCBEAT_WORKERS=2\r\nSYNCBEAT_ROLE=rpc\r\n")
    assert (load(tmp_path / ".env").workers, load(tmp_path / ".env").role) == (2, "rpc")


def test_env_file_bad_line_is_reported_by_number(tmp_path: Path) -> None:
    put(tmp_path / ".env", f"SYNCBEAT_WORKERS=2\nSYNCBEAT_JWT_SECRETS='k={HIDDEN}\n")
    message = refused(tmp_path / ".env")
    assert message == ".env: line 2 is not NAME=value"


@pytest.mark.parametrize("line", ["no assignment", "SYNCBEAT_ROLE", "export PATH", "SYNCBEAT_WORKERS 2", "='x'"])
def test_env_file_line_without_an_assignment_is_a_fault(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / ".env", f"# of ours\n\nSYNCBEAT_WORKERS=2\n{line}\nSYNCBEAT_WORKRS=2\n")
    assert refused(tmp_path / ".env").splitlines() == [
        ".env: line 4 is not NAME=value",
        ".env line 5: SYNCBEAT_WORKRS: no such setting; did you mean SYNCBEAT_WORKERS?",
    ]
    assert not caplog.records, "dotenv's own warning would say it again, in other words"


def test_faults_of_all_sources_are_reported_at_once(tmp_path: Path) -> None:
    put(tmp_path / ".env", f"SYNCBEAT_JWT_SECRETS_FILE={tmp_path}/none.txt\nnothing\nSYNCBEAT_ROLE=every\n")
    told = refused(tmp_path / ".env", APPS_FILE=f"{tmp_path}/none.toml", TYPO="1", TLS_KEY=f"{tmp_path}/none.pem")
    assert told.splitlines() == [
        "SYNCBEAT_TYPO: no such setting; see 'syncbeat-server check-config --list'",
        ".env: line 2 is not NAME=value",
        f"SYNCBEAT_JWT_SECRETS_FILE: cannot read it: there is no file {tmp_path}/none.txt",
        f"SYNCBEAT_APPS_FILE: cannot read it: there is no file {tmp_path}/none.toml",
        ".env line 3: SYNCBEAT_ROLE: want one of all, rpc, worker",
        f"SYNCBEAT_TLS_KEY: there is no file {tmp_path}/none.pem",
    ]


def test_missing_files_are_reported_with_what_does_not_go_together(tmp_path: Path) -> None:
    files = {name: f"{tmp_path}/{name}.pem" for name in ("TLS_KEY", "JWKS_FILE", "FCM_CREDENTIALS")}
    told = refused(**files, MTLS_LISTEN="127.0.0.1:0", SESSION_SECRETS="k=short", LISTEN="h:1", OPS_LISTEN="h:1")
    assert sorted(told.splitlines()) == sorted(
        [
            *(f"SYNCBEAT_{name}: there is no file {path}" for name, path in files.items()),
            "SYNCBEAT_SESSION_SECRETS: the secret of kid 'k' is shorter than 32 bytes",
            "SYNCBEAT_SESSION_KEYS and SESSION_SECRETS: set both ('syncbeat-server token keys' prints them)",
            "SYNCBEAT_TLS_CERTIFICATE and TLS_KEY: set both, or neither",
            "SYNCBEAT_MTLS_LISTEN and SERVICE_CERTIFICATES: set both, or neither",
            "SYNCBEAT_LISTEN and OPS_LISTEN: the same port of the same address: each listener needs its own",
        ]
    )


@pytest.mark.parametrize(
    ("listen", "ops_listen", "clash"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051", True),
        ("0.0.0.0:50051", "127.0.0.1:50051", True),
        ("127.0.0.1:50051", "[::]:50051", True),
        ("localhost:50051", "127.0.0.1:50051", True),
        ("[::1]:50051", "[0:0::1]:50051", True),
        ("127.0.0.1:50051", "10.0.0.1:50051", False),
        ("0.0.0.0:50051", "0.0.0.0:9464", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_listeners_that_share_a_port_are_refused(listen: str, ops_listen: str, clash: bool) -> None:
    if not clash:
        load(LISTEN=listen, OPS_LISTEN=ops_listen)
        return
    assert "LISTEN and OPS_LISTEN: the same port" in refused(LISTEN=listen, OPS_LISTEN=ops_listen)


def test_setting_beside_its_file_is_refused_by_both_names(tmp_path: Path) -> None:
    put(tmp_path / "secrets", f"k={SECRET}")
    both = {"JWT_SECRETS": f"k={SECRET}", "JWT_SECRETS_FILE": str(tmp_path / "secrets")}
    message = refused(**both)
    assert message.startswith("SYNCBEAT_JWT_SECRETS and SYNCBEAT_JWT_SECRETS_FILE: both are set")
    # One that is empty is not set.
    assert list(load(**{**both, "JWT_SECRETS": ""}).jwt_secrets) == ["k"]
    assert list(load(**{**both, "JWT_SECRETS_FILE": ""}).jwt_secrets) == ["k"]
    put(tmp_path / ".env", "".join(f"SYNCBEAT_{name}={text}\n" for name, text in both.items()))
    assert "both are set" in refused(tmp_path / ".env")


def test_environment_wins_over_a_file_named_in_the_env_file(tmp_path: Path) -> None:
    put(tmp_path / ".env", "SYNCBEAT_WORKERS_FILE=/no/such/file\nSYNCBEAT_ROLE=rpc\n")
    put(tmp_path / "role", "worker")
    settings = load(tmp_path / ".env", WORKERS="3", ROLE_FILE=str(tmp_path / "role"))
    assert (settings.workers, settings.role) == (3, "worker")


@pytest.mark.parametrize("shape", UNREADABLE)
def test_secrets_file_unreadable_is_reported(tmp_path: Path, shape: str) -> None:
    UNREADABLE[shape](tmp_path / "secrets")
    message = refused(JWT_SECRETS_FILE=str(tmp_path / "secrets"))
    assert message.startswith("SYNCBEAT_JWT_SECRETS_FILE: cannot read it: ")
    assert str(tmp_path / "secrets") in message


@pytest.mark.parametrize(
    "content",
    [
        f"a={SECRET}\r\nb={SECRET}\r\n",
        f"\ufeffa={SECRET},b={SECRET}",
        f"a={SECRET}\nb={SECRET}\n\n",
        f" a={SECRET},\rb={SECRET} ",
    ],
)
def test_secrets_file_is_read_alike_whatever_editor_wrote_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "secrets").write_bytes(content.encode())
    secrets = load(JWT_SECRETS_FILE=str(tmp_path / "secrets")).jwt_secrets
    assert {kid: secret.get_secret_value() for kid, secret in secrets.items()} == {"a": SECRET, "b": SECRET}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n", "is empty"),
        (f"k={HIDDEN}\0".encode(), "NUL"),
        (f"k={HIDDEN}".encode("utf-16"), "UTF-8"),
        (f"k={HIDDEN}".encode() + b"\xff", "UTF-8"),
        (f"k={HIDDEN}".encode() + b"x" * MAX_BYTES, "larger than 1024 KiB"),
        (f"{HIDDEN}==".encode(), "want kid=secret"),
        (f"{HIDDEN}=short".encode(), "the secret number 1 is shorter"),
    ],
    ids=["empty", "blank", "NUL", "utf-16", "half a character", "huge", "no kid", "a secret for a kid"],
)
def test_secrets_file_malformed_is_reported_without_its_content(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "secrets").write_bytes(content)
    message = refused(JWT_SECRETS_FILE=str(tmp_path / "secrets"))
    assert told in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"JWT_SECRETS_FILE": f"k={HIDDEN}"},
        {"WEBHOOK_TOKEN_FILE": HIDDEN},
        {"FCM_CREDENTIALS": '{"private_key": "' + HIDDEN + '"}'},
        {"FCM_CREDENTIALS": '{"private_key": "' + HIDDEN * 200 + '"}'},
        {"TLS_KEY": f"-----BEGIN PRIVATE KEY-----\n{HIDDEN}\n", "TLS_CERTIFICATE": __file__},
        {"JWKS_FILE": HIDDEN * 500},
        {"APPS_FILE": f"[apps.x]\njwt_secrets = 'k={HIDDEN}'"},
        {f"JWT_SECRETS={HIDDEN}": "x"},
    ],
    ids=lambda settings: ",".join(settings)[:20],
)
def test_secret_in_place_of_a_path_is_redacted(settings: dict[str, str]) -> None:
    assert "hunter2" not in refused(**settings)


@pytest.mark.parametrize("shape", [shape for shape in NOT_APPS if shape != "a template without a text"])
def test_apps_file_unusable_is_reported_in_a_sentence(tmp_path: Path, shape: str) -> None:
    NOT_APPS[shape](tmp_path / "apps.toml")
    message = refused(APPS_FILE=str(tmp_path / "apps.toml"))
    assert message.startswith("SYNCBEAT_")
    assert all(line.startswith(("SYNCBEAT_", ".env")) for line in message.splitlines()), message


@pytest.mark.parametrize(
    "url", ["redis://a,b", "redis://a:6379,b:6379/0", "rediss://u:p@a,b", "redis://:p,w@a,b:1/2?x=1"]
)
def test_redis_host_list_is_refused_with_the_alternative(url: str) -> None:
    message = refused(REDIS_URL=url)
    assert message.startswith("SYNCBEAT_REDIS_URL: ")
    assert "want one host; several are sentinels': redis+sentinel://" in message
    assert "p,w" not in message


def test_redis_password_may_contain_a_comma() -> None:
    assert load(REDIS_URL="redis://:pa,ss@a:6379/0").redis_url is not None


def test_setting_that_is_not_utf8_is_refused() -> None:
    assert refused(JWT_ISSUER="caf\udce9") == "SYNCBEAT_JWT_ISSUER: want text in UTF-8"


TEXTS = st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="ignore"))
FILES = sorted(name.upper() for name in Settings.model_fields if name not in APPS_FILE_ONLY)
FRAGMENTS = st.sampled_from(
    [
        *(
            "[apps.shop]\n",
            "[[apps.shop.issuers]]\n",
            "[apps.default.templates.x]\n",
            "jwt_secrets = ",
            "x.y = ",
            "1e999",
        ),
        *(
            f"'k={HIDDEN}'\n",
            f"jwt_secrets = {{ '{HIDDEN}' = 1 }}\n",
            "{}",
            "[",
            "]",
            "nan",
            "\n",
            "0x",
            "1979-05-27",
            '"',
        ),
        *(
            "fcm_base_url = 'http://['\n",
            "staleness_target_s = ",
            "default = ",
            "'",
            "\\u0000",
            "templates",
            " = ",
            "[apps]\n",
        ),
        *("SYNCBEAT_WORKERS=", f"SYNCBEAT_JWT_SECRETS=k={HIDDEN}\n", "${X:-", "export ", "SYNCBEAT_", "\ufeff", "\r"),
    ]
)
DOCUMENTS = TEXTS | st.lists(FRAGMENTS, max_size=12).map("".join).map(str.encode)


def never_a_traceback(content: bytes, env_file: Path | None, **settings: str) -> None:
    """Load; what is wrong is said in a sentence each, in which no secret stands."""
    message = ""
    try:
        load(env_file, **settings)
    except ConfigurationError as error:
        message = error.message
    assert HIDDEN.lower() not in message.lower(), content
    # A line for each fault, and of what was given no character that would make another.
    assert all(line.startswith((".env", "SYNCBEAT_")) for line in message.splitlines()), message


@given(DOCUMENTS)
def test_env_file_of_any_content_loads_or_is_reported(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ".env")
        path.write_bytes(content)
        never_a_traceback(content, path)


@given(DOCUMENTS)
def test_apps_file_of_any_content_loads_or_is_reported(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "apps.toml")
        path.write_bytes(content)
        never_a_traceback(content, None, APPS_FILE=str(path))


@given(st.sampled_from(FILES), TEXTS | st.just(HIDDEN.encode()) | TEXTS.map(lambda text: HIDDEN.encode() + text))
def test_settings_file_of_any_content_loads_or_is_reported(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "value")
        path.write_bytes(content)
        never_a_traceback(content, None, **{f"{name}_FILE": str(path)})


@given(st.sampled_from(FILES), st.text(max_size=50) | st.text(max_size=20).map(lambda text: HIDDEN + text))
def test_setting_of_any_value_loads_or_is_reported(name: str, text: str) -> None:
    never_a_traceback(text.encode(errors="replace"), None, **{name: text})


def test_env_file_wrong_values_are_reported_by_line(tmp_path: Path) -> None:
    lines = ["# of ours", "SYNCBEAT_WORKERS=0", "", "", "export SYNCBEAT_ROLE=every", f"SYNCBEAT_JWT_SECRETS={HIDDEN}"]
    put(tmp_path / ".env", "\n".join([*lines, "SYNCBEAT_RESEND_S=1,x", "SYNCBEAT_TLS_KEY=key.pem"]))
    assert refused(tmp_path / ".env", LOG_LEVEL="LOUD").splitlines() == [
        ".env line 6: SYNCBEAT_JWT_SECRETS: want kid=secret, several separated by commas",
        ".env line 5: SYNCBEAT_ROLE: want one of all, rpc, worker",
        ".env line 2: SYNCBEAT_WORKERS: want whole number, 1 to 64",
        ".env line 8: SYNCBEAT_TLS_KEY: there is no file key.pem",
        ".env line 7: SYNCBEAT_RESEND_S, entry 2: want number; several by commas, 0.1 to 3600",
        "SYNCBEAT_LOG_LEVEL: want one of DEBUG, INFO, WARNING, ERROR",
    ]
    put(tmp_path / ".env", "\nSYNCBEAT_TLS_KEY=key.pem\n")
    assert refused(tmp_path / ".env").splitlines() == [
        ".env line 2: SYNCBEAT_TLS_KEY: there is no file key.pem",
        ".env line 2: SYNCBEAT_TLS_CERTIFICATE and TLS_KEY: set both, or neither",
    ]
    put(tmp_path / ".env", "\n\nSYNCBEAT_WORKRS=2\n")
    told = ".env line 3: SYNCBEAT_WORKRS: no such setting; did you mean SYNCBEAT_WORKERS?"
    assert refused(tmp_path / ".env") == told


def test_apps_file_wrong_values_are_reported_by_line(tmp_path: Path) -> None:
    text = """[apps.shop]
jwt_issuer = "https://shop.example"
workers = 3

[[apps.shop.issuers]]
jwt_issuer = "https://a.example"
[[apps.shop.issuers]]
jwt_issuer = ""
jwt_leeway_s = 99

[apps."two".templates.hello.de]
titel = "x"

[apps.three]
jwt_issuer = "https://three.example"
jwt_secrets = "k1=short"
"""
    put(tmp_path / "apps.toml", text)
    unknown = "no such setting of an app; see 'syncbeat-server check-config --list'"
    assert refused(APPS_FILE=str(tmp_path / "apps.toml")).splitlines() == [
        "SYNCBEAT_APPS_FILE: line 8: apps.shop.issuers.2.jwt_issuer: want text that is not empty",
        "SYNCBEAT_APPS_FILE: line 9: apps.shop.issuers.2.jwt_leeway_s: want number, 0 to 30",
        f"SYNCBEAT_APPS_FILE: line 3: apps.shop.workers: {unknown}",
        f"SYNCBEAT_APPS_FILE: line 12: apps.two.templates.hello.de.titel: {unknown}",
        "SYNCBEAT_APPS_FILE: line 16: apps.three: JWT_SECRETS: the secret of kid 'k1' is shorter than 32 bytes",
    ]


def test_setting_that_is_empty_is_not_set() -> None:
    assert load(WORKERS="", CAPACITY_RPS="", FCM_BASE_URL="", LOG_LEVEL="", TLS_KEY="", APPS_FILE="") == Settings()
    assert load(RESEND_S="").resend_s == (), "a list can be empty on purpose"
