"""The command as a user meets it: real processes, real stores."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import grpc
import psutil
import pytest
from dotenv import dotenv_values

from syncbeat import Session, SessionTokens, SyncbeatClient
from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_devtools.demo.processes import DemoFailed, Identity, start_process
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.valkeys import running_valkey

pytestmark = pytest.mark.process

SECRET = "demo=" + "s" * 32


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    return subprocess.run(
        [sys.executable, "-m", "syncbeat_server.cli", *arguments],
        env={**environment, **{f"SYNCBEAT_{name}": value for name, value in settings.items()}},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


COMMANDS = (
    *(
        "serve",
        "worker",
        "migrate",
        "check-config",
        "new-epoch",
        "app",
        "import-rtdb",
        "healthcheck",
        "token",
        "status",
        "fake-fcm",
        "demo",
    ),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_command(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: syncbeat-server {command}")


def test_config_error_names_the_setting_and_the_fix() -> None:
    done = run("check-config", JWT_SECRETS="demo=short", WORKERS="0", TYPO="1")
    assert done.returncode == 1
    assert "SYNCBEAT_TYPO: no such setting" in done.stderr
    done = run("check-config", JWT_SECRETS="demo=short", WORKERS="0")
    assert done.returncode == 1
    assert "SYNCBEAT_WORKERS" in done.stderr
    assert "Traceback" not in done.stderr


def test_token_command_never_prints_the_signing_secret() -> None:
    done = run("token", "user", "alice", JWT_SECRETS=SECRET, JWT_SUBJECTS="any")
    assert done.returncode == 0
    assert done.stdout.count(".") == 2
    assert "s" * 32 not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "named"),
    [
        ("token user bob --minutes nan", {}, "--minutes: want a number above 0"),
        ("token user bob --minutes 1e300", {}, "--minutes: want a number above 0"),
        ("token user ", {}, "a user id is a UUID"),
        ("token service a\tb", {}, "token service: a name is"),
        ("token admin a --methods b,c", {}, "--methods and --apps: want names joined by |"),
        ("token service a --methods Nope", {}, "token service: --methods: 'Nope', which is no RPC"),
        ("token admin a --methods GetHynt|GetHint", {}, "'GetHynt', which is no RPC: did you mean GetHint?"),
        ("token service a --methods Nope", {}, "syncbeat-server: the RPCs are Ac"),
        ("token service a --methods |", {}, "--methods: nothing: want names"),
        ("serve", {"JWT_SECRETS": "", "LISTEN": "127.0.0.1:0"}, "none is set, so nobody can call"),
        ("check-config", {"JWT_SECRETS": ""}, "none is set, so nobody can call"),
        ("fake-fcm --port 99999", {}, "--port: want a number from 0 to 65535"),
        ("fake-fcm --port 000000199999", {}, "--port: want a number from 0 to 65535"),
        ("fake-fcm --host 203.0.113.1 --allow-remote", {}, "cannot listen on 203.0.113.1:0"),
        ("fake-fcm --host 0.0.0.0", {}, "fake-fcm: --host: other machines can reach 0.0.0.0; set --allow-remote if"),
        ("fake-fcm --latency-ms -1", {}, "fake-fcm: --latency-ms: want 0 or more"),
        ("fake-fcm --project a/b", {}, "fake-fcm: --project: want a project's name, without a slash"),
        ("fake-fcm --credentials /no/such/folder", {}, "--credentials: cannot write /no/such/folder: No such file"),
        ("demo --serve --json", {}, "demo: --serve prints no JSON: leave out --json"),
        ("new-epoch", {}, "SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL: name the stores"),
        ("app list", {}, "SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL: name the stores"),
        ("migrate", {}, "SYNCBEAT_DATABASE_URL: name the database"),
        ("migrate", {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x"}, "check SYNCBEAT_DATABASE_URL"),
        ("migrate", {"DATABASE_SESSION_URL": "postgresql://u@127.0.0.1:1/x"}, "check SYNCBEAT_DATABASE_SESSION_URL"),
        ("serve", {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x"}, "set both, or neither"),
        ("check-config", {"REDIS_URL": "redis://127.0.0.1:1"}, "set both, or neither"),
        (
            "worker",
            {"DATABASE_URL": "postgresql://u@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"},
            "the database does not answer: check SYNCBEAT_DATABASE_URL",
        ),
    ],
)
def test_error_is_reported_without_a_traceback(arguments: str, settings: dict[str, str], named: str) -> None:
    done = run(*arguments.split(" "), **{"JWT_SECRETS": SECRET, **settings})
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert "pydantic" not in done.stderr


def test_jwks_file_damage_is_named(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": [1]}')
    done = run("check-config", JWKS_FILE=str(keys))
    assert done.returncode == 1
    assert "SYNCBEAT_JWKS_FILE: each key of a JWKS is an object" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_config_reports_redis_faults(database_urls: DatabaseUrls, tmp_path: Path, redis_url: str) -> None:
    good = {"DATABASE_URL": database_urls.app_url, "JWT_SECRETS": SECRET}
    assert run("check-config", **good, REDIS_URL=redis_url).returncode == 0
    with running_valkey(tmp_path, "--requirepass", "not-to-be-told") as valkey:
        for url, named in (
            (valkey.url, "the user or the password"),
            (f"rediss://127.0.0.1:{valkey.port}", "it speaks no TLS"),
            (f"redis+sentinel://:not-to-be-told@127.0.0.1:{valkey.port}/heart", "refuse their own user or password"),
            (f"redis://:not-to-be-told@127.0.0.1:{valkey.port}?foo=1", "SYNCBEAT_REDIS_URL: a parameter"),
        ):
            done = run("check-config", **good, REDIS_URL=url)
            assert (done.returncode, named in done.stderr) == (1, True), done.stderr
            assert "not-to-be-told" not in done.stdout + done.stderr


def test_migrate_needs_no_redis(database_urls: DatabaseUrls) -> None:
    for settings in ({"DATABASE_URL": database_urls.owner_url}, {"DATABASE_SESSION_URL": database_urls.owner_url}):
        done = run("migrate", **settings)
        assert (done.returncode, done.stdout) == (0, "syncbeat-server: nothing to do\n"), done.stderr


def test_login_refused_names_the_setting(database_urls: DatabaseUrls, redis_url: str) -> None:
    url = database_urls.app_url.replace(database_urls.name, "no_such_database")
    done = run("serve", DATABASE_URL=url, REDIS_URL=redis_url, JWT_SECRETS=SECRET, LISTEN="127.0.0.1:0")
    assert done.returncode == 1
    assert "SYNCBEAT_DATABASE_URL (SQLSTATE 3D000)" in done.stderr


def test_token_command_prints_the_service_token_entry() -> None:
    done = run("token", "service", "backend", "--methods", "GetHint|SendNotification")
    token, entry = done.stdout.splitlines()
    checked = run("check-config", JWT_SECRETS=SECRET, SERVICE_TOKENS=entry.partition("=")[2])
    assert checked.returncode == 0, checked.stderr
    assert token.rpartition(" ")[2] not in entry


def test_serve_on_an_older_schema_names_the_command(database_urls: DatabaseUrls, redis_url: str) -> None:
    asyncio.run(_undo_last_migration(database_urls))
    done = run(
        "serve", DATABASE_URL=database_urls.app_url, REDIS_URL=redis_url, JWT_SECRETS=SECRET, LISTEN="127.0.0.1:0"
    )
    assert done.returncode == 1
    assert "syncbeat-server migrate" in done.stderr


async def _undo_last_migration(urls: DatabaseUrls) -> None:
    newest = "SELECT max(version) FROM schema_migrations"
    await run_sql(urls.owner_url, f"DELETE FROM schema_migrations WHERE version = ({newest})")


def test_serve_refuses_a_login_that_bypasses_row_level_security(database_urls: DatabaseUrls, redis_url: str) -> None:
    done = run(
        "serve", DATABASE_URL=database_urls.admin_url, REDIS_URL=redis_url, JWT_SECRETS=SECRET, LISTEN="127.0.0.1:0"
    )
    assert done.returncode == 1
    assert "row-level security" in done.stderr


async def test_processes_share_one_port_and_end_together(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, free_port: int
) -> None:
    settings = {
        **Identity.new().settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": f"127.0.0.1:{free_port}",
        "SYNCBEAT_WORKERS": "2",
        "SYNCBEAT_LOG_FORMAT": "json",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")
    try:
        # The copy that is asked may be the one that has not said yet that it serves.
        await wait_until(lambda: _serves(f"127.0.0.1:{free_port}"), 20)
        children = await wait_until(lambda: _two(_children(process.pid)))
    finally:
        assert await process.stop() == 0
    assert not any(_alive(child) for child in children)


async def test_port_in_use_is_named(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="SYNCBEAT_LISTEN"):
        await start_process(
            ["serve"],
            {
                **Identity.new().settings(),
                "SYNCBEAT_DATABASE_URL": database_urls.app_url,
                "SYNCBEAT_REDIS_URL": redis_url,
                "SYNCBEAT_LISTEN": "203.0.113.1:50051",
            },
            tmp_path / "log",
        )


async def test_serve_needs_only_a_secret(tmp_path: Path) -> None:
    settings = {"SYNCBEAT_JWT_SECRETS": SECRET, "SYNCBEAT_LISTEN": "127.0.0.1:0"}
    process = await start_process(["serve"], settings, tmp_path / "log")
    await wait_until(lambda: _serves(process.address), 20)
    assert psutil.Process(process.pid).memory_info().rss < 120 * 1024 * 1024
    stores = _children(process.pid)
    await process.kill()
    await wait_until(lambda: not any(_alive(child) for child in stores), what="the stores end with the server")


@pytest.mark.parametrize(("program", "name"), [("postgres", "PostgreSQL"), ("valkey-server", "Valkey")])
async def test_serve_ends_when_an_embedded_store_dies(program: str, name: str, tmp_path: Path) -> None:
    settings = {"SYNCBEAT_JWT_SECRETS": SECRET, "SYNCBEAT_LISTEN": "127.0.0.1:0"}
    process = await start_process(["serve"], settings, tmp_path / "log")
    stores = {child.name(): child for child in psutil.Process(process.pid).children()}
    stores[program].kill()
    assert await asyncio.wait_for(process.wait(), 20) == 1
    told = f"the embedded {name} ended by itself (signal 9)"
    assert f"{told}: what needs it ends now" in process.log_text()
    assert process.log_text().splitlines()[-1] == f"syncbeat-server: {told}"
    assert not any(_alive(child.pid) for child in stores.values())


async def test_demo_serves_where_told_and_leaves_nothing_when_killed(free_port: int) -> None:
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "syncbeat_server.cli", "demo", "--serve"),
        env={**os.environ, "SYNCBEAT_LISTEN": f"127.0.0.1:{free_port}"},
        stdout=subprocess.PIPE,
    )
    assert demo.stdout is not None
    text = (await asyncio.wait_for(demo.stdout.readuntil(b"SERVICE_TOKEN="), 30)).decode()
    assert f"Syncbeat serves on 127.0.0.1:{free_port};" in text
    log = Path(text.partition("Its log is ")[2].partition(",")[0])
    await wait_until(log.exists)
    family = [child.pid for child in psutil.Process(demo.pid).children(recursive=True)]
    demo.kill()
    await demo.communicate()
    await wait_until(lambda: not log.parent.parent.exists(), what="its folder is removed")
    await wait_until(lambda: not any(_alive(child) for child in family), what="all that it started ends")


async def _serves(address: str) -> bool:
    health = await asyncio.to_thread(run, "healthcheck", "--address", address)
    return (health.returncode, health.stdout) == (0, f"syncbeat-server: {address} is SERVING\n")


def _two(pids: list[int]) -> list[int]:
    return pids if len(pids) == 2 else []


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_session_keys_that_were_printed_serve_sessions(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    env_file = tmp_path / "printed.env"
    env_file.write_text(run("token", "keys").stdout)
    printed = {name: value or "" for name, value in dotenv_values(env_file).items()}
    assert printed.keys() == {"SYNCBEAT_SESSION_KEYS", "SYNCBEAT_SESSION_SECRETS"}
    identity = Identity.new()
    settings = {
        **identity.settings(),
        **printed,
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")
    async with SyncbeatClient(process.address, token=identity.service_token, tls=False) as backend:
        made = await backend.auth.CreateSession(auth_service_pb2.CreateSessionRequest(user_id="ann"))
    session = Session(SessionTokens.of(made))
    async with session, SyncbeatClient(process.address, token=session, tls=False) as client:
        assert not (await client.directory.ListDevices(directory_service_pb2.ListDevicesRequest())).devices
    assert await process.stop() == 0


async def test_metrics_and_readiness_are_served_over_http(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, free_port: int
) -> None:
    identity = Identity.new()
    settings = {
        **identity.settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_OPS_LISTEN": f"127.0.0.1:{free_port}",
        "SYNCBEAT_STALENESS_P95_S": "30",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")
    async with SyncbeatClient(process.address, token="no token", tls=False) as client:
        with pytest.raises(grpc.aio.AioRpcError):
            await client.sync.GetHint(sync_service_pb2.GetHintRequest(device_id="phone"))
    async with SyncbeatClient(process.address, token=identity.service_token, tls=False) as backend:
        explanation = await _meet_a_change(backend)
    assert "for 95 of 100 changes seen within 30 s" in explanation
    async with aiohttp.ClientSession(f"http://127.0.0.1:{free_port}") as session:
        async with session.get("/readyz") as answer:
            assert answer.status == 200

        async def counted() -> bool:
            # The caller has its answer before the server has counted the call.
            async with session.get("/metrics") as answer:
                text = await answer.text()
            names = (
                *('grpc_method="GetHint"', 'grpc_code="UNAUTHENTICATED"', "syncbeat_token_cache_misses_total"),
                'syncbeat_sync_staleness_seconds_count{app="default"} 1.0',
                'syncbeat_sync_requests_total{app="default"} 2.0',
            )
            return all(name in text for name in names)

        await wait_until(counted)
    assert await process.stop() == 0


async def _meet_a_change(backend: SyncbeatClient) -> str:
    """A phone asks, a change comes, the phone asks again; how the last hint came about."""
    await backend.directory.RegisterDevice(
        directory_service_pb2.RegisterDeviceRequest(
            user_id="ann", device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID
        )
    )
    member = directory_service_pb2.ScopeMember(user_id="ann", role=directory_service_pb2.ROLE_READER)
    news = core_pb2.NewChange(scope="s", key="k", merge_patch_json="{}")
    publish = sync_service_pb2.PublishChangesRequest(changes=[news])
    await backend.sync.PublishChanges(publish)
    await backend.directory.AddScopeMembers(directory_service_pb2.AddScopeMembersRequest(scope="s", members=[member]))
    ask = sync_service_pb2.GetHintRequest(
        user_id="ann", device_id="phone", cursors=[core_pb2.ScopeCursor(scope="s", sequence=1)], explain=True
    )
    assert not (await backend.sync.GetHint(ask)).hint.changed
    await backend.sync.PublishChanges(publish)
    hint = (await backend.sync.GetHint(ask)).hint
    assert hint.changed
    return hint.explanation


async def test_child_processes_end_with_their_parent(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, free_port: int
) -> None:
    settings = {
        **Identity.new().settings(),
        "SYNCBEAT_DATABASE_URL": database_urls.app_url,
        "SYNCBEAT_REDIS_URL": redis_url,
        "SYNCBEAT_LISTEN": f"127.0.0.1:{free_port}",
        "SYNCBEAT_WORKERS": "2",
    }
    process = await start_process(["serve"], settings, tmp_path / "log")
    children = await wait_until(lambda: _two(_children(process.pid)))
    await process.kill()
    await wait_until(lambda: not any(_alive(child) for child in children), what="the copies end")


def test_child_processes_that_fail_are_not_restarted_forever(
    database_urls: DatabaseUrls, redis_url: str, free_port: int
) -> None:
    asyncio.run(_undo_last_migration(database_urls))
    settings = {"DATABASE_URL": database_urls.app_url, "REDIS_URL": redis_url, "JWT_SECRETS": SECRET, "WORKERS": "2"}
    done = run("serve", LISTEN=f"127.0.0.1:{free_port}", **settings)
    assert done.returncode == 1
    assert "syncbeat-server migrate" in done.stderr
