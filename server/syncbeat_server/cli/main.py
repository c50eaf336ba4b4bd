"""The command `syncbeat-server`: parses the arguments, runs a subcommand, reports its failure in one line.

What only some subcommands need is imported for them: `healthcheck` runs every few seconds.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from syncbeat_server import __version__
from syncbeat_server.cli.healthcheck import HEALTHCHECK, add_healthcheck
from syncbeat_server.errors import SyncbeatError

_READER_LEFT = 128 + signal.SIGPIPE  # the status that a shell reports for any program ended by SIGPIPE
_EMBEDDED_ONLY = ("h2", "hpack", "httptools")
_COMPARISONS = ("verify", "reconcile")
# The subcommands by the extra whose packages they need. The others run wherever the client is installed.
_COMMANDS_OF = {
    "server": (
        "serve",
        "worker",
        "migrate",
        "check-config",
        "new-epoch",
        "app",
        "import-rtdb",
        "audit",
        "events",
        "token",
        "status",
        "slo",
        "smoke",
        "soak",
        "import-users",
        "export",
        "verify",
        "reconcile",
        "user",
        "simulate",
    ),
    "embedded": ("fake-fcm", "demo"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    try:
        try:
            return _status(arguments)
        finally:
            sys.stdout.flush()
    except (OSError, BaseExceptionGroup) as error:
        fault = _output_fault(error)
        if fault is None:
            raise
        # Python would try to write the rest again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(fault, BrokenPipeError):
            return _READER_LEFT
        print(f"syncbeat-server: cannot write: {fault.strerror}", file=sys.stderr)
        return _failed(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in ("syncbeat", "syncbeat_server", "syncbeat_devtools"):
            raise
        extras = ("server", "embedded") if name in _EMBEDDED_ONLY else ("server",)
        from syncbeat_server.ops.install_hint import install_command

        print(f"syncbeat-server: '{name}' is not installed: {install_command(*extras)}", file=sys.stderr)
        return 2


def _output_fault(error: BaseException) -> OSError | None:
    """Return the fault of standard output that `error` is about, or None."""
    try:
        sys.stdout.flush()  # unwritten output is still buffered
    except OSError as fault:
        return fault
    first = _first(error)
    if isinstance(first, OSError) and first.errno in (errno.EPIPE, errno.ENOSPC):
        return first  # of an unbuffered output; the errors of other pipes are translated where they arise
    return None


def _name_statements(parsed: argparse.Namespace) -> None:
    """Let the statements of a command name it. The health check, which runs often, has none and imports less."""
    from syncbeat_server.ops.work_origin import WorkRank, name_of, task_origin, work_origin

    work_origin.set(task_origin(name_of(parsed.run).lstrip("_"), WorkRank.CALL))


def _status(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parser()
    if given[:1] != [HEALTHCHECK]:
        lacking = _lacking_extras()
        for extra in lacking:
            if given and given[0] in _COMMANDS_OF[extra]:
                print(f"syncbeat-server: this installation lacks packages {_how_to_get(extra)}", file=sys.stderr)
                return 2
        parser.epilog = "\n".join(_how_to_get(extra) for extra in lacking) or None
        _add_others(commands, lacking)
    add_healthcheck(commands)
    parsed = parser.parse_args(given)
    if given[:1] != [HEALTHCHECK]:
        _name_statements(parsed)
    try:
        return int(parsed.run(parsed) or 0)
    except (SyncbeatError, BaseExceptionGroup) as error:
        # A background task's own error ends the process with a traceback.
        if isinstance(error, BaseExceptionGroup) and error.split(SyncbeatError)[1] is not None:
            raise
        import logging

        logging.shutdown()  # the log writes its pending counts first, so that the reason of the end stands last
        for line in str(_first(error)).splitlines() or [""]:
            print(f"syncbeat-server: {line}", file=sys.stderr)
        return _failed(given)
    except KeyboardInterrupt:
        return 130


def _failed(given: Sequence[str]) -> int:
    """Return the status of a command that could not do its work: 2 where 1 says that two sides differ."""
    return 2 if given and given[0] in _COMPARISONS else 1


def _first(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _lacking_extras() -> list[str]:
    from syncbeat_server.ops.install_hint import has_extra

    return [extra for extra in _COMMANDS_OF if not has_extra(extra)]


def _parser() -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser, and its part that subcommands are added to."""
    parser = argparse.ArgumentParser(
        prog="syncbeat-server",
        description="Serves Syncbeat, and administers it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    # Without `prog` argparse lays out a text to find it, for which it loads shutil and every compression.
    return parser, parser.add_subparsers(title="commands", required=True, metavar="COMMAND", prog=parser.prog)


def _add_others(commands: Any, lacking: Sequence[str]) -> None:
    """Add the subcommands beside `healthcheck` that can run with the packages that are installed."""
    if "server" in lacking:
        return
    from syncbeat_devtools.simulate.arguments import add_simulate
    from syncbeat_server.cli.apps import add_app
    from syncbeat_server.cli.audit_log.listing import add_audit
    from syncbeat_server.cli.check_config import add_check_config
    from syncbeat_server.cli.deployment.slo import add_slo
    from syncbeat_server.cli.deployment.smoke import add_smoke
    from syncbeat_server.cli.deployment.soak import add_soak
    from syncbeat_server.cli.devtools import add_demo, add_fake_fcm
    from syncbeat_server.cli.events import add_events
    from syncbeat_server.cli.migrate import add_migrate
    from syncbeat_server.cli.new_epoch import add_new_epoch
    from syncbeat_server.cli.serve import add_serve
    from syncbeat_server.cli.status import add_status
    from syncbeat_server.cli.tokens import add_token
    from syncbeat_server.cli.transfer.export import add_export
    from syncbeat_server.cli.transfer.import_rtdb import add_import_rtdb
    from syncbeat_server.cli.transfer.import_users import add_import_users
    from syncbeat_server.cli.transfer.users import add_user
    from syncbeat_server.cli.transfer.verify import add_reconcile, add_verify

    servers = (add_serve, add_migrate, add_check_config, add_new_epoch, add_app, add_audit, add_events, add_token)
    transfers = (add_import_rtdb, add_import_users, add_verify, add_reconcile, add_export, add_user)
    for add in (*servers, *transfers, add_status, add_slo, add_smoke, add_soak, add_simulate):
        add(commands)
    if not lacking:
        add_fake_fcm(commands)
        add_demo(commands)


def _how_to_get(extra: str) -> str:
    from syncbeat_server.ops.install_hint import install_command

    extras = ("server",) if extra == "server" else ("server", extra)
    return f"for {', '.join(_COMMANDS_OF[extra])}: {install_command(*extras)}"
