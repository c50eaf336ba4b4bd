"""Subcommand `new-epoch`: begin new epochs after PostgreSQL was restored (docs/restore.md)."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.audit_log.operator import operator_name
from syncbeat_server.cli.startup import open_stores, read_settings
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.app import Stores
    from syncbeat_server.sync.model import Extent

_REPORT_EVERY = 50_000  # scopes, some three seconds


def add_new_epoch(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "new-epoch",
        help="after PostgreSQL was restored: let no device go on from what the restore took back",
        description="Begin a new epoch in every scope, so that each device lists its scopes anew. Run it after a "
        "restore, before the servers start, as the service's login. Without --confirm it tells what it would do.",
    )
    command.add_argument("--confirm", metavar="DATABASE", help="do it, in the database of this name")
    command.add_argument("--app", help="the scopes of one app only, where no other app's were restored")
    command.add_argument("--skip-redis", action="store_true", help="Redis is away, and will be flushed")
    command.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    import asyncio

    from syncbeat_server.audit.origin import Origin, origin

    settings = read_settings()
    if settings.store_urls() is None and settings.embedded_dir is None:
        raise ConfigurationError("SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL: name the stores of the deployment")
    with open_stores(settings) as (stores, _):
        origin.set(Origin(operator_name()))
        return asyncio.run(_begin_epochs(stores, parsed))


async def _begin_epochs(stores: Stores, parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import open_restored

    async with open_restored(stores, parsed.app, skip_redis=parsed.skip_redis) as restored:
        found = await restored.extent()
        if parsed.confirm is None:
            _say(f"{_name(found)}: {found.scopes} scopes of {found.apps} apps would begin new epochs")
            _say("each device would drop what it keeps of them and list them anew; nothing in the database is deleted")
            again = " ".join(["new-epoch", *_options(parsed), "--confirm", found.database])
            print(f"syncbeat-server: nothing was done; to do it: syncbeat-server {again}", file=sys.stderr)
            return 1
        if parsed.confirm != found.database:
            raise ConfigurationError(f"--confirm: the database is {found.database!r}; nothing was done")
        done = await restored.renew(_Progress().report)
    _say(f"{_name(found)}: {done.scopes} scopes began new epochs; the feeds' generation is {done.generation}")
    if done.answers is None:
        _say(
            "Redis was left alone: flush it before it is used again, or it answers for calls that the restore took back"
        )
    else:
        _say(f"{done.answers} kept answers of earlier calls were deleted from Redis")
    _say("each device lists its scopes anew: with its next poll, or at once where it has a stream")
    return 0


class _Progress:
    """Reports the scopes done so far, once each `_REPORT_EVERY`."""

    def __init__(self) -> None:
        self._reported = 0

    def report(self, count: int) -> None:
        if count // _REPORT_EVERY > self._reported:
            self._reported = count // _REPORT_EVERY
            _say(f"{count} scopes are done")


def _options(parsed: argparse.Namespace) -> list[str]:
    return [*(["--app", parsed.app] if parsed.app else []), *(["--skip-redis"] if parsed.skip_redis else [])]


def _name(found: Extent) -> str:
    return f"database {found.database!r}"


def _say(text: str) -> None:
    print(f"syncbeat-server: {text}", flush=True)
