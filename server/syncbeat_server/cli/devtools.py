"""Subcommands of the shipped tools: `fake-fcm` and `demo`."""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path
from typing import Any

from syncbeat_server.cli.startup import run_until_stopped
from syncbeat_server.errors import ConfigurationError

_MAX_PORT = 65_535
_FLAG_OF = {"host": "--host", "allow_remote": "--allow-remote", "project_id": "--project", "latency_ms": "--latency-ms"}
_FAKE_FCM_HELP = """\
What a sender needs besides the address is the service account, from --credentials or GET /control/service-account.
Tests control the fake by JSON over HTTP; docs/fake-fcm.md has each call in full:

  GET    /control/deliveries       accepted messages (?token= ?after= ?limit= ?wait_ms= ?min_count=)
  GET    /control/devices/{token}  what a device would have shown
  GET    /control/stats            counters
  GET    /control/service-account  the JSON of a service account
  POST   /control/faults           script a fault: {"token": "phone-1", "kind": "unregistered"}
  DELETE /control/faults           drop the scripted faults (?token=)
  POST   /control/latency          hold back answers: {"latency_ms": 200}
  POST   /control/release          let requests that hang succeed (?token=)
  POST   /control/reset            forget messages, faults and counters
"""


def add_fake_fcm(commands: Any) -> None:
    """Add `fake-fcm` to the parser."""
    fake = commands.add_parser(
        "fake-fcm",
        help="serve a fake of FCM HTTP v1, for tests",
        epilog=_FAKE_FCM_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fake.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    fake.add_argument("--port", type=_port, default=0, help="0 takes a free one")
    fake.add_argument(
        "--project", default="demo-project", help="the project whose messages are taken (default: %(default)s)"
    )
    fake.add_argument("--tls", action="store_true", help="with a certificate of a CA made at start")
    fake.add_argument("--no-http2", action="store_true", help="HTTP/1.1 only")
    fake.add_argument("--latency-ms", type=int, default=0, help="hold back every answer to a send")
    fake.add_argument("--allow-remote", action="store_true", help="listen on an address other machines can reach")
    fake.add_argument("--credentials", type=Path, help="write the service account's JSON here")
    fake.set_defaults(run=_serve_fake_fcm)


def add_demo(commands: Any) -> None:
    """Add `demo` to the parser."""
    demo = commands.add_parser("demo", help="play the whole story over real processes, and check each claim")
    demo.add_argument("--json", action="store_true", help="print JSON lines")
    demo.add_argument("--serve", action="store_true", help="keep serving until Ctrl-C, with tokens to try")
    demo.set_defaults(run=_run_demo)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) <= _MAX_PORT):
        raise argparse.ArgumentTypeError(f"want a number from 0 to {_MAX_PORT}")
    return int(text)


def _serve_fake_fcm(parsed: argparse.Namespace) -> int:
    import asyncio

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
        named = re.sub(r"\b[a-z_]+\b", lambda word: _FLAG_OF.get(word[0], word[0]), str(error))
        raise ConfigurationError(f"fake-fcm: {named}") from None

    async def serve_until(stop: asyncio.Event) -> None:
        serving = asyncio.ensure_future(fake_fcm.serve(settings, ready))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    try:
        run_until_stopped(serve_until)
    except OSError as error:
        what = f"--host, --port: cannot listen on {parsed.host}:{parsed.port}: {error.strerror}"
        raise ConfigurationError(f"fake-fcm: {what}") from None
    return 0


def _run_demo(parsed: argparse.Namespace) -> int:
    if parsed.serve and parsed.json:
        raise ConfigurationError("demo: --serve prints no JSON: leave out --json")
    from syncbeat_devtools.demo.run import play, serve
    from syncbeat_server.cli.demo_settings import read_readers_settings

    return serve(read_readers_settings()) if parsed.serve else play(as_json=parsed.json)
