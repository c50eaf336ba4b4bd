"""Subcommand `import-users`: import the users of Firebase Auth (docs/migrate/identities.md)."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.startup import read_settings
from syncbeat_server.cli.transfer.chosen_app import add_app_option, opened_app
from syncbeat_server.cli.transfer.exit_status import LEFT_OUT

if TYPE_CHECKING:
    from syncbeat_server.transfer.firebase.importer import ImportPlan, UserReport

_PROJECT = re.compile(r"[a-z][a-z0-9-]{2,61}[a-z0-9]")
_REPORT_EVERY = 10_000  # users


def add_import_users(commands: Any) -> None:
    """Add the subcommand to the parser."""
    command = commands.add_parser(
        "import-users",
        help="import users of Firebase Auth: who they are, and who is disabled",
        description="Import what `firebase auth:export users.json` wrote: users, disabled ones, and the identities by "
        "which they are known when they move to another issuer. It can be run again at any time, and then changes "
        "nothing that is there. Hashes of passwords are not kept; of e-mail addresses a digest is, of those that are "
        "verified, and only where EMAIL_JOINS names the project's issuer. "
        "Exits 0 if nobody is left out, and 3 if somebody is, who is listed.",
    )
    command.add_argument("export", type=Path, metavar="USERS.json", help="the export, as JSON")
    command.add_argument("--project", required=True, type=_project, help="the id of the Firebase project")
    add_app_option(command)
    command.add_argument("--dry-run", action="store_true", help="write nothing; tell what would be done")
    command.set_defaults(run=_run)


def _project(text: str) -> str:
    if not _PROJECT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: want a project's id, such as our-shop")
    return text


def _run(parsed: argparse.Namespace) -> int:
    import asyncio

    from syncbeat_server.app.transfer.user_import import is_configured, plan_user_import, run_user_import

    with opened_app(parsed) as (stores, app_id):
        app = read_settings().all_apps()[app_id]
        plan = plan_user_import(app_id, app, parsed.project, dry_run=parsed.dry_run)
        report, untold = asyncio.run(run_user_import(stores, plan, parsed.export, _Progress().show))
    _print_report(report, plan)
    if not is_configured(app, plan):
        _say(f"{plan.issuer} is no issuer of the app: its tokens are refused until it is configured")
    if untold:
        _say("Redis does not answer: the servers refuse the disabled users within a minute")
    return LEFT_OUT if report.misfits else 0


class _Progress:
    """Tells on standard error how many users are read, once each `_REPORT_EVERY`."""

    def __init__(self) -> None:
        self._told = 0

    def show(self, report: UserReport) -> None:
        if report.read // _REPORT_EVERY > self._told:
            self._told = report.read // _REPORT_EVERY
            print(f"syncbeat-server: {report.read:,} users read", file=sys.stderr, flush=True)


def _print_report(report: UserReport, plan: ImportPlan) -> None:
    for reason, count in sorted(report.misfits.items(), key=lambda row: (-row[1], row[0])):
        print(f"{count:>12}  {reason.value}  (first: user {report.examples[reason]} of the file)")
    for name, count in sorted(report.providers.items(), key=lambda row: (-row[1], row[0])):
        print(f"{count:>12}  sign in by {name}")
    verb = "would import" if plan.dry_run else "imported"
    _say(
        f"{verb} into app {plan.app_id!r} as subjects of {plan.issuer}: of {report.read} users {report.users} "
        f"new ones, {report.identities} identities, {report.disabled} disabled"
    )
    kept = f"{report.verified} with a verified e-mail address, of which digests are kept ({report.emails} changed)"
    _say(kept if plan.keep_emails else "no e-mail address is kept: no EMAIL_JOINS names this issuer")
    if report.blocked:
        _say(f"{report.blocked} were disabled or deleted here before, and stay so")
    left_out = report.misfits.total()
    if left_out:
        _say(f"{left_out} users are left out, as listed")


def _say(text: str) -> None:
    print(f"syncbeat-server: {text}", flush=True)
