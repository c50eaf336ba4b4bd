"""Grants the service's login the roles that row-level security needs, and refuses a login that it does not bind.

What the owner of the database may not grant, an administrator must: the error has the statements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import asyncpg

from syncbeat_server.errors import ConfigurationError, MigrationFailed
from syncbeat_server.storage.postgres.database import Connection

_GRANT_TRIES = 20
# GRANTs of one role in several databases at once conflict: one of them fails with these codes, and is repeated.
_RACES = ("XX000", "23505", "40001", "40P01")
_Raw: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def require_restricted_login(conn: Connection) -> None:
    """Check that row-level security binds the login of `conn`.

    Raises:
        ConfigurationError: it is a superuser, has BYPASSRLS or owns the tables (itself or through a role), or its
            row_security is off, with which PostgreSQL refuses every statement that a policy would bind.
        DependencyDown: the database does not answer.
    """
    row = await conn.fetchrow(
        """SELECT current_user::text AS login, quote_ident(current_user) AS quoted,
                  quote_ident(current_database()) AS database,
                  (SELECT source FROM pg_settings WHERE name = 'row_security' AND setting = 'off') AS off_by,
                  bool_or(r.rolsuper OR r.rolbypassrls) AS bypasses,
                  EXISTS (SELECT FROM pg_class c
                          WHERE c.relkind IN ('r', 'p') AND c.relnamespace = current_schema()::regnamespace
                            AND pg_has_role(current_user, c.relowner, 'MEMBER')) AS owns
           FROM pg_roles r WHERE pg_has_role(current_user, r.oid, 'MEMBER')"""
    )
    if row is not None and (row["bypasses"] or row["owns"]):
        raise ConfigurationError(
            f"SYNCBEAT_DATABASE_URL: the login {row['login']} is above row-level security (superuser, BYPASSRLS "
            "or owner of the tables): give the service a login of its own, as deploy/postgres/10-logins.sh does"
        )
    if row is not None and row["off_by"] is not None:
        # A setting of this login in this database overrides all others but those of the address itself.
        fix = f"run ALTER ROLE {row['quoted']} IN DATABASE {row['database']} SET row_security = on"
        raise ConfigurationError(
            f"SYNCBEAT_DATABASE_URL: row_security is off for the login {row['login']}, so that PostgreSQL refuses its "
            f"queries: {'take row_security out of the address' if row['off_by'] == 'client' else fix}"
        )


async def require_writable(conn: Connection) -> None:
    """Check that the login of `conn` may write here, for a command that would find it out after long work.

    Raises:
        ConfigurationError: the database is a standby or set to read-only, or the login has no grant to write.
        DependencyDown: the database does not answer.
    """
    row = await conn.fetchrow(
        """SELECT current_user::text AS login, pg_is_in_recovery() AS is_standby,
                  current_setting('transaction_read_only') = 'on' AS is_read_only,
                  has_table_privilege('changes', 'INSERT') AND has_table_privilege('users', 'INSERT') AS may_write"""
    )
    if row is None:
        return
    if row["is_standby"]:
        raise ConfigurationError("SYNCBEAT_DATABASE_URL: it is a standby, which takes no writes: name the primary")
    if row["is_read_only"]:
        raise ConfigurationError(
            "SYNCBEAT_DATABASE_URL: the database takes no writes (default_transaction_read_only is on): set it to off "
            f"for the login {row['login']} and the database, or name another one"
        )
    if not row["may_write"]:
        raise ConfigurationError(
            f"SYNCBEAT_DATABASE_URL: the login {row['login']} may not write (permission denied): use the service's "
            "login, which `syncbeat-server migrate --app-login` gives its grants"
        )


async def require_roles(conn: _Raw, app_login: str) -> None:
    """Check that this login can create and grant the roles that are missing, before any migration is applied.

    The owner of a managed database often may not (no CREATEROLE).

    Raises:
        MigrationFailed: it cannot; the message has the statements that an administrator must run.
    """
    names = [role for role, _, _ in _wanted(per_grant=True)]
    us = await conn.fetchrow(
        """SELECT current_user::text AS login, rolsuper OR rolcreaterole AS makes_roles,
                  ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY($1)) AS found
           FROM pg_roles WHERE rolname = current_user""",
        [*names, app_login],
    )
    assert us is not None  # noqa: S101  # the current user always has a row
    missing = [name for name in (*names, app_login) if name not in us["found"]]
    if us["makes_roles"] and app_login in missing:
        raise MigrationFailed(
            f"there is no login {app_login}: create it first (deploy/postgres/10-logins.sh shows how)"
        )
    wanted = [f"CREATE ROLE {name} NOLOGIN" for name in names if name in missing and not us["makes_roles"]]
    if app_login in missing:
        wanted.append(f"CREATE ROLE {await _quoted(conn, app_login)} LOGIN PASSWORD '...'")
    for role, grant in await _missing_grants(conn, app_login, missing):
        # The creator of a role administers it; before PostgreSQL 16 any login with CREATEROLE administered all roles.
        made_here = us["makes_roles"] and (role in missing or not await _per_grant(conn))
        if not made_here and not await _administers(conn, role):
            wanted.append(grant)
    if wanted:
        raise MigrationFailed(
            f"the login {us['login']} may not make or grant the roles that row-level security needs: let an "
            f"administrator run this once, and migrate again: {'; '.join(wanted)};"
        )


async def _administers(conn: _Raw, role: str) -> bool:
    """Return True if this login administers a role; False if there is no such role."""
    return bool(
        await conn.fetchval(
            "SELECT pg_has_role(oid, 'MEMBER WITH ADMIN OPTION') FROM pg_roles WHERE rolname = $1", role
        )
    )


async def grant_roles(conn: _Raw, app_login: str) -> None:
    """Let `app_login` inherit the service's privileges and take the user's role, unless it can already."""
    for _ in range(_GRANT_TRIES):
        missing = [grant for _, grant in await _missing_grants(conn, app_login, [])]
        try:
            for grant in missing:
                await conn.execute(grant)
        except asyncpg.InsufficientPrivilegeError as error:
            raise MigrationFailed(f"this login may not run: {'; '.join(missing)}; an administrator can") from error
        except asyncpg.PostgresError as error:
            if error.sqlstate not in _RACES:
                raise
        else:
            return
    raise MigrationFailed(f"roles could not be granted to {app_login}: others keep changing them")


async def _missing_grants(conn: _Raw, app_login: str, absent: Sequence[str]) -> list[tuple[str, str]]:
    """Return (role, statement) of each grant that `app_login` lacks; `absent` roles and logins do not exist yet."""
    login = await _quoted(conn, app_login)
    missing = []
    for role, privilege, option in _wanted(per_grant=await _per_grant(conn)):
        has = role not in absent and app_login not in absent
        if not (has and await conn.fetchval("SELECT pg_has_role($1::name, $2::name, $3)", app_login, role, privilege)):
            missing.append((role, f"GRANT {role} TO {login} {option}".rstrip()))
    return missing


def _wanted(*, per_grant: bool) -> Sequence[tuple[str, str, str]]:
    # The login inherits the service's role, and takes the user's role without inheriting it where PostgreSQL separates
    # the two (16 and later). Before, a plain grant does both, without harm: a login that inherits syncbeat_service sees
    # every row anyway.
    return (
        ("syncbeat_service", "USAGE", "WITH INHERIT TRUE" if per_grant else ""),
        ("syncbeat_user", "SET" if per_grant else "MEMBER", "WITH INHERIT FALSE, SET TRUE" if per_grant else ""),
    )


async def _per_grant(conn: _Raw) -> bool:
    return int(await conn.fetchval("SHOW server_version_num")) >= 160000


async def _quoted(conn: _Raw, name: str) -> str:
    return str(await conn.fetchval("SELECT quote_ident($1)", name))
