"""The command `syncbeat-server`: parses, loads the settings, calls."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import math
import os
import re
import secrets
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbeat_devtools.simulate.arguments import add_simulate
from syncbeat_server import __version__
from syncbeat_server.cli.new_epoch import add_new_epoch
from syncbeat_server.errors import ConfigurationError, DependencyDown, SyncbeatError

if TYPE_CHECKING:
    from syncbeat_devtools.embedded import EmbeddedStores
    from syncbeat_server.app import Stores
    from syncbeat_server.ops.settings.server import Role, Settings

_PROBE_S = 3.0
_MAX_PORT = 65_535
_MAX_MINUTES = 525_600.0  # a year
_READER_LEFT = 128 + signal.SIGPIPE  # as a shell tells it of any other program
_EMBEDDED_ONLY = ("h2", "hpack", "httptools")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    try:
        try:
            return _status(arguments)
        finally:
            sys.stdout.flush()
    except (OSError, BaseExceptionGroup) as error:
        fault = _output_fault(error)
        if fault is None:
            raise
        # What cannot be written is not tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(fault, BrokenPipeError):
            return _READER_LEFT
        print(f"syncbeat-server: cannot write: {fault.strerror}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in ("syncbeat", "syncbeat_server", "syncbeat_devtools"):
            raise
        extra = "server,embedded" if name in _EMBEDDED_ONLY else "server"
        print(f"syncbeat-server: '{name}' is not installed: pip install 'syncbeat[{extra}]'", file=sys.stderr)
        return 2


def _output_fault(error: BaseException) -> OSError | None:
    """What keeps standard output from being written, if that is what `error` is about."""
    try:
        sys.stdout.flush()  # what could not be written is still there
    except OSError as fault:
        return fault
    first = _first(error)
    if isinstance(first, OSError) and first.errno in (errno.EPIPE, errno.ENOSPC):
        return first  # an output without a buffer; the errors of other pipes are translated where they arise
    return None


def _status(arguments: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed) or 0)
    except (SyncbeatError, BaseExceptionGroup) as error:
        # What a background task died of ends the process with it.
        if isinstance(error, BaseExceptionGroup) and error.split(SyncbeatError)[1] is not None:
            raise
        logging.shutdown()  # the log tells what it has counted first: the reason of the end stands last
        print(f"syncbeat-server: {_first(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _first(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="syncbeat-server", description=__doc__.partition(":")[0] if __doc__ else "")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve RPCs and deliver (SYNCBEAT_ROLE: all | rpc | worker)")
    serve.set_defaults(run=lambda _: _serve(None))
    worker = commands.add_parser("worker", help="deliver only")
    worker.set_defaults(run=lambda _: _serve("worker"))
    migrate = commands.add_parser("migrate", help="bring the database up to date")
    migrate.add_argument("--app-login", default="syncbeat_app", help="the login that serves (default: %(default)s)")
    migrate.set_defaults(run=_migrate)
    check = commands.add_parser("check-config", help="check the settings, and the stores they name")
    check.add_argument("--list", action="store_true", help="list every setting and its default")
    check.set_defaults(run=_check_config)
    add_new_epoch(commands, _settings, _stores)
    health = commands.add_parser("healthcheck", help="exit 0 when the server at SYNCBEAT_LISTEN serves")
    health.add_argument("--address", help="host:port to ask instead")
    health.set_defaults(run=_healthcheck)
    _add_token(commands)
    _add_devtools(commands)
    return parser


def _add_token(commands: Any) -> None:
    token = commands.add_parser("token", help="make a user's, a service's or an admin's token")
    kinds = token.add_subparsers(title="kinds", required=True, metavar="KIND")
    user = kinds.add_parser("user", help="an access token signed with SYNCBEAT_JWT_SECRETS, to try things")
    user.add_argument("user_id")
    user.add_argument("--minutes", type=_minutes, default=60.0, help="its life (default: %(default)s)")
    user.add_argument("--app", default="default", help="its app (default: %(default)s)")
    user.set_defaults(run=_user_token)
    keys = kinds.add_parser("keys", help="a new key and secret for our own sessions (SYNCBEAT_SESSION_KEYS, _SECRETS)")
    keys.set_defaults(run=_session_keys)
    for kind in ("service", "admin"):
        one = kinds.add_parser(kind, help=f"a new token, and its entry for SYNCBEAT_{kind.upper()}_TOKENS")
        one.add_argument("name")
        one.add_argument("--methods", default="*", help="RPC names joined by | (default: all)")
        one.add_argument("--apps", default="*", help="apps joined by | (default: all)")
        one.set_defaults(run=_opaque_token, kind=kind)


def _add_devtools(commands: Any) -> None:
    fake = commands.add_parser("fake-fcm", help="serve a fake of FCM HTTP v1, for tests")
    fake.add_argument("--host", default="127.0.0.1")
    fake.add_argument("--port", type=_port, default=0, help="0 takes a free one")
    fake.add_argument("--project", default="demo-project")
    fake.add_argument("--tls", action="store_true", help="with a certificate of a CA made at start")
    fake.add_argument("--no-http2", action="store_true")
    fake.add_argument("--latency-ms", type=int, default=0, help="hold back every answer to a send")
    fake.add_argument("--allow-remote", action="store_true", help="listen on an address other machines can reach")
    fake.add_argument("--credentials", type=Path, help="write the service account's JSON here")
    fake.set_defaults(run=_fake_fcm)
    demo = commands.add_parser("demo", help="play the whole story over real processes, and check each claim")
    demo.add_argument("--json", action="store_true", help="print JSON lines")
    demo.add_argument("--serve", action="store_true", help="keep serving until Ctrl-C, with tokens to try")
    demo.set_defaults(run=_demo)
    add_simulate(commands)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) <= _MAX_PORT):
        raise argparse.ArgumentTypeError(f"want a number from 0 to {_MAX_PORT}")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"want a number above 0, at most {_MAX_MINUTES:.0f} (a year)")
    return minutes


def _serve(role_name: str | None) -> int:
    from syncbeat_server.ops.settings.server import Role

    settings = _settings()
    role = Role(role_name) if role_name else settings.role
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or its core writes a line for each handshake of strangers
    with _stores(settings) as (stores, embedded):
        if settings.workers > 1:
            return _serve_copies(settings, stores, role, embedded)
        from syncbeat_server import app

        def ready(address: str) -> None:
            # The line to wait for. It says that calls are served now.
            print(f"syncbeat-server: serving on {address}", flush=True)

        _run(lambda stop: app.serve(settings, stores, role, stop, ready), embedded, settings.drain_s)
    return 0


def _serve_copies(settings: Settings, stores: Stores, role: Role, embedded: EmbeddedStores | None) -> int:
    from syncbeat_server.ops.process_group import run_copies
    from syncbeat_server.ops.settings.sources import PREFIX

    if settings.listen.endswith(":0"):
        raise ConfigurationError(f"{PREFIX}WORKERS: several processes share one port, so SYNCBEAT_LISTEN needs one")
    said = {
        f"{PREFIX}WORKERS": "1",
        f"{PREFIX}SHARE_PORT": "true",
        f"{PREFIX}ROLE": role.value,
        f"{PREFIX}DATABASE_URL": stores.database_url,
        f"{PREFIX}REDIS_URL": stores.redis_url,
    }
    # What is said here is not to stand beside a file that says it.
    own = {name: text for name, text in os.environ.items() if name.removesuffix("_FILE") not in said}
    command = [sys.executable, "-m", "syncbeat_server.cli", "serve"]
    _run(lambda stop: run_copies(command, own | said, settings.workers, stop), embedded, settings.drain_s)
    return 0


@contextlib.contextmanager
def _stores(settings: Settings) -> Iterator[tuple[Stores, EmbeddedStores | None]]:
    """The stores the settings name; without any, embedded ones, migrated, beside what runs them."""
    urls = settings.store_urls()
    if urls is not None:
        from syncbeat_server.app import Stores

        yield Stores(*urls), None
        return
    from syncbeat_devtools.embedded import running_stores

    with running_stores(settings.embedded_dir) as embedded:
        # The servers are up before the large imports: those and the servers' start share the wait.
        from syncbeat_server.app import Stores
        from syncbeat_server.storage.migrate import migrate

        asyncio.run(migrate(embedded.owner_url, app_login="syncbeat_app"))
        yield Stores(embedded.app_url, embedded.redis_url), embedded


def _run(work: Any, embedded: EmbeddedStores | None = None, drain_s: float | None = None) -> None:
    """Run `work(stop)` on uvloop; signals (`heed_signals`) and the end of an embedded store set `stop`."""
    import uvloop

    from syncbeat_server.ops.shutdown_budget import heed_signals

    async def until_stopped() -> None:
        stop = asyncio.Event()
        heed_signals(stop, drain_s if embedded is None else None)
        coroutine: Coroutine[Any, Any, None] = work(stop)
        await (coroutine if embedded is None else embedded.supervise(coroutine, stop.set))

    uvloop.run(until_stopped())


def _settings() -> Settings:
    from syncbeat_server.ops import logs
    from syncbeat_server.ops.settings.server import LogFormat, load_settings

    settings = load_settings()
    logs.set_up(as_json=settings.log_format is LogFormat.JSON, level=settings.log_level)
    return settings


def _migrate(parsed: argparse.Namespace) -> int:
    settings = _settings()
    url = settings.database_session_url or settings.database_url
    if url is None:
        raise ConfigurationError(
            "SYNCBEAT_DATABASE_SESSION_URL or SYNCBEAT_DATABASE_URL: name the database to migrate, by its owner's login"
        )
    from syncbeat_server.storage.migrate import migrate

    try:
        applied = asyncio.run(migrate(url.get_secret_value(), app_login=parsed.app_login))
    except DependencyDown as error:
        name = "DATABASE_URL" if settings.database_session_url is None else "DATABASE_SESSION_URL"
        raise ConfigurationError(f"{error.message}: check SYNCBEAT_{name}, and that it runs there") from error
    print(f"syncbeat-server: applied {', '.join(applied)}" if applied else "syncbeat-server: nothing to do")
    return 0


def _check_config(parsed: argparse.Namespace) -> int:
    from syncbeat_server.ops.settings.server import describe_settings

    if parsed.list:
        print(describe_settings())
        return 0
    settings = _settings()
    from syncbeat_server.app import Stores, faults

    urls = settings.store_urls()
    stores = None if urls is None else Stores(*urls)
    found = asyncio.run(faults(settings, stores))
    for fault in found:
        print(f"syncbeat-server: {fault}", file=sys.stderr)
    if not found:
        print(f"syncbeat-server: the settings are good ({'embedded stores' if stores is None else 'stores answer'})")
    return 1 if found else 0


def _healthcheck(parsed: argparse.Namespace) -> int:
    from syncbeat_server.rpc.health_probe import SERVING, own_addresses, probe_until_one_serves

    settings = _settings()
    if parsed.address is None and settings.listen.endswith(":0"):
        raise ConfigurationError("SYNCBEAT_LISTEN: nobody knows the port it takes: name one, or use --address")
    addresses = own_addresses(settings.listen) if parsed.address is None else [parsed.address]
    status = ""
    for address, status in probe_until_one_serves(addresses, _PROBE_S, settings.tls_certificate):
        print(f"syncbeat-server: {address} is {status}")
    return 0 if status == SERVING else 1


def _user_token(parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import key_rows
    from syncbeat_server.auth.tokens.verify import mint
    from syncbeat_server.clock import SystemClock

    app = _settings().all_apps().get(parsed.app)
    rows = [] if app is None else [row for row in key_rows(parsed.app, app) if row.algorithm == "HS256"]
    if not rows:
        raise ConfigurationError(f"SYNCBEAT_JWT_SECRETS: app {parsed.app!r} has no secret to sign with")
    try:
        print(mint(rows[0], parsed.user_id, SystemClock().now(), timedelta(minutes=parsed.minutes)))
    except ValueError as error:
        raise ConfigurationError(f"token user: {error}") from None
    return 0


def _session_keys(_parsed: argparse.Namespace) -> int:
    from syncbeat_server.auth.tokens.keys import new_signing_key

    kid = secrets.token_hex(4)
    print(f"SYNCBEAT_SESSION_KEYS='{new_signing_key(kid).decode()}'")  # quoted for a shell and for .env alike
    print(f"SYNCBEAT_SESSION_SECRETS={kid}={secrets.token_urlsafe(32)}")
    return 0


def _opaque_token(parsed: argparse.Namespace) -> int:
    from syncbeat_server.ops.settings.server import digest_of
    from syncbeat_server.ops.settings.types import NAME

    if not re.fullmatch(NAME, parsed.name):
        raise ConfigurationError(f"token {parsed.kind}: a name is 1 to 64 of A-Z a-z 0-9 _ . -")
    if re.search(r"[:,\s]", parsed.methods + parsed.apps):
        raise ConfigurationError(f"token {parsed.kind}: --methods and --apps: want names joined by |, or *")
    token = secrets.token_urlsafe(32)
    entry = f"{parsed.name}:{digest_of(token)}:{parsed.methods}:{parsed.apps}"
    print(f"token (give it to the {parsed.kind}, it is shown once): {token}")
    print(f"SYNCBEAT_{parsed.kind.upper()}_TOKENS={entry}")
    return 0


def _fake_fcm(parsed: argparse.Namespace) -> int:
    from syncbeat_devtools import fake_fcm

    def ready(fake: fake_fcm.FakeFcm) -> None:
        if parsed.credentials is not None:
            try:
                fake.write_service_account(parsed.credentials)
            except OSError as error:
                what = f"--credentials: cannot write {parsed.credentials}: {error.strerror}"
                raise ConfigurationError(f"fake-fcm: {what}") from None
        if fake.ca_file is not None:
            print(f"fake-fcm: its CA certificate is {fake.ca_file}", flush=True)
        print(f"fake-fcm: serving on {fake.base_url}", flush=True)

    try:
        settings = fake_fcm.FakeFcmSettings(
            host=parsed.host,
            port=parsed.port,
            project_id=parsed.project,
            tls=parsed.tls,
            http2=not parsed.no_http2,
            latency_ms=parsed.latency_ms,
            allow_remote=parsed.allow_remote,
        )
    except ValueError as error:
        raise ConfigurationError(f"fake-fcm: {error}") from None

    async def until(stop: asyncio.Event) -> None:
        serving = asyncio.ensure_future(fake_fcm.serve(settings, ready))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    try:
        _run(until)
    except OSError as error:
        what = f"--host, --port: cannot listen on {parsed.host}:{parsed.port}: {error.strerror}"
        raise ConfigurationError(f"fake-fcm: {what}") from None
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    if parsed.serve and parsed.json:
        raise ConfigurationError("demo: --serve prints no JSON: leave out --json")
    from syncbeat_devtools.demo.run import play, serve

    return serve() if parsed.serve else play(as_json=parsed.json)
