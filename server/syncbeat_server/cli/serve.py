"""Subcommands `serve` and `worker`: run a serving process, or several that share a port."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.startup import open_stores, read_checked_settings, run_until_stopped
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_devtools.embedded import EmbeddedStores
    from syncbeat_server.app import Stores
    from syncbeat_server.ops.settings.server import Role, Settings


def add_serve(commands: Any) -> None:
    """Add both subcommands to the parser."""
    serve = commands.add_parser("serve", help="serve RPCs and deliver (SYNCBEAT_ROLE: all | rpc | worker)")
    serve.set_defaults(run=_serve, role=None)
    worker = commands.add_parser("worker", help="deliver only")
    worker.set_defaults(run=_serve, role="worker")


def _serve(parsed: argparse.Namespace) -> int:
    from syncbeat_server.ops.settings.server import Role
    from syncbeat_server.rpc.grpc_logs import silence_failed_handshakes

    silence_failed_handshakes()
    asked = Role(parsed.role) if parsed.role else None
    settings, faults = read_checked_settings(asked, to_serve=True)
    if settings is None or faults:
        raise ConfigurationError("\n".join(faults))
    role = asked or settings.role
    with open_stores(settings, role) as (stores, embedded):
        if settings.workers > 1:
            return _serve_copies(settings, stores, role, embedded)
        from syncbeat_server import app

        def ready(address: str) -> None:
            # Scripts wait for this line: calls are served from here on.
            print(f"syncbeat-server: serving on {address}", flush=True)

        run_until_stopped(lambda stop: app.serve(settings, stores, role, stop, ready), embedded, settings.drain_s)
    return 0


def _serve_copies(settings: Settings, stores: Stores, role: Role, embedded: EmbeddedStores | None) -> int:
    from syncbeat_server.ops.process_group import run_copies
    from syncbeat_server.ops.settings.sources import PREFIX

    settings.require_shared_port()
    overrides = {
        f"{PREFIX}WORKERS": "1",
        f"{PREFIX}DATABASE_PROCESSES": str(settings.database_processes or settings.workers),
        f"{PREFIX}SHARE_PORT": "true",
        f"{PREFIX}ROLE": role.value,
    }
    if embedded is not None:  # those of other stores the copies read themselves, and follow their files
        overrides |= {f"{PREFIX}DATABASE_URL": stores.database_url, f"{PREFIX}REDIS_URL": stores.redis_url}
    command = [sys.executable, "-m", "syncbeat_server.cli", "serve"]
    with contextlib.ExitStack() as stack:
        if settings.metrics_dir is None:
            own_folder = tempfile.TemporaryDirectory(prefix="syncbeat-")  # that only this user can enter
            overrides[f"{PREFIX}METRICS_DIR"] = stack.enter_context(own_folder)
        # A setting may not be given both by NAME and by NAME_FILE.
        inherited = {name: text for name, text in os.environ.items() if name.removesuffix("_FILE") not in overrides}
        environment = inherited | overrides
        run_until_stopped(
            lambda stop: run_copies(command, environment, settings.workers, stop), embedded, settings.drain_s
        )
    return 0
