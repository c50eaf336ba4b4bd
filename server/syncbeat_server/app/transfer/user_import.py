"""Wires imports of the users of Firebase Auth: whose subjects they are, and who is told that one was disabled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from syncbeat_server.app.process import Stores, deployment_id
from syncbeat_server.app.token_issuers import issuer_of
from syncbeat_server.app.transfer.export import open_transfer, tell_callers
from syncbeat_server.auth.model import Issuer, home_issuer
from syncbeat_server.auth.tokens.verify import is_user_id
from syncbeat_server.defaults import UnlinkedSubjects
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.transfer.firebase.importer import ImportPlan, UserReport, import_users

_ISSUERS = "https://securetoken.google.com/"


def plan_user_import(app_id: str, app: AppSettings, project: str, *, dry_run: bool) -> ImportPlan:
    """Return the plan of an import of a project's users into an app.

    Raises:
        ConfigurationError: the app's settings have a fault, or say that the subjects of that issuer are shared.
    """
    name = _ISSUERS + project
    configured = {given.jwt_issuer: issuer_of(app_id, given) for given in (app, *app.issuers)}
    issuer = configured.get(name) or Issuer(app_id, name, uuid_subjects=False)
    if issuer.unlinked is UnlinkedSubjects.SHARED:
        raise ConfigurationError(
            f"SYNCBEAT_UNLINKED_SUBJECTS: subjects of {name} are shared: identities would not be read"
        )
    return ImportPlan(
        app_id=app_id,
        issuer=name,
        is_user_id=lambda text: is_user_id(issuer, text),
        home=home_issuer(configured.values()),
        keep_emails=any(name in one.email_joins for one in configured.values()),
        dry_run=dry_run,
    )


def is_configured(app: AppSettings, plan: ImportPlan) -> bool:
    """Tell if tokens of the plan's issuer are accepted for the app."""
    return plan.issuer in {given.jwt_issuer for given in (app, *app.issuers)}


async def run_user_import(
    stores: Stores, plan: ImportPlan, export: Path, on_batch: Callable[[UserReport], None]
) -> tuple[UserReport, bool]:
    """Import an export, and tell the servers of users who were disabled.

    Returns:
        What was done, and if the servers could not be told: they refuse those users within a minute all the same.

    Raises:
        ConfigurationError: the file is no export, cannot be read, or the login is not the service's.
        DependencyDown: the database does not answer.
        MigrationNeeded: it is of another version.
    """
    disabled: list[str] = []
    try:
        with export.open("rb") as file:
            async with open_transfer(stores.database_url) as database:
                deployment = await deployment_id(database)  # now: a database that fails later must not keep it
                try:
                    report = await import_users(database, plan, file, disabled.append, on_batch)
                finally:
                    callers = [(plan.app_id, user_id) for user_id in disabled]
                    untold = bool(callers) and not await tell_callers(stores, deployment, callers)
    except OSError as error:
        raise ConfigurationError(f"{export}: {error.strerror}") from error
    return report, untold
