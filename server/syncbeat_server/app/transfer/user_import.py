"""Wires imports of the users of Firebase Auth: whose subjects they are, and who is told that one was disabled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from syncbeat_server.app.change_notifier import Topic, wake_up_message
from syncbeat_server.app.process import Stores, deployment_id
from syncbeat_server.app.token_issuers import issuer_of
from syncbeat_server.app.transfer.export import open_transfer
from syncbeat_server.auth.model import Issuer, home_issuer
from syncbeat_server.auth.tokens.verify import is_user_id
from syncbeat_server.clock import SystemClock
from syncbeat_server.defaults import UnlinkedSubjects
from syncbeat_server.errors import ConfigurationError, DependencyDown
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.storage.redis.bus import open_redis
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
                try:
                    report = await import_users(database, plan, file, disabled.append, on_batch)
                finally:
                    untold = not await _tell(stores, await deployment_id(database), plan.app_id, disabled)
    except OSError as error:
        raise ConfigurationError(f"{export}: {error.strerror}") from error
    return report, untold


async def _tell(stores: Stores, deployment: str, app_id: str, users: list[str]) -> bool:
    if not users:
        return True
    try:
        async with open_redis(stores.redis_url, SystemClock(), deployment) as bus:
            for user_id in users:
                await bus.announce(Topic.CALLERS, wake_up_message(app_id, user_id))
    except DependencyDown:
        return False
    return True
