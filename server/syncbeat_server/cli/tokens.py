"""Subcommand `token`: make tokens of users, services and admins, and keys of the service's own sessions."""

from __future__ import annotations

import argparse
import math
import re
import secrets
from datetime import timedelta
from typing import Any

from syncbeat_server.cli.startup import read_settings
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import ConfigurationError

_MAX_MINUTES = 525_600.0  # a year


def add_token(commands: Any) -> None:
    """Add the subcommand and its kinds to the parser."""
    token = commands.add_parser("token", help="make a user's, a service's or an admin's token")
    kinds = token.add_subparsers(title="kinds", required=True, metavar="KIND")
    user = kinds.add_parser("user", help="an access token signed with SYNCBEAT_JWT_SECRETS, to try things")
    user.add_argument("user_id")
    user.add_argument("--minutes", type=_minutes, default=60.0, help="its life (default: %(default)s)")
    user.add_argument("--app", default=DEFAULT_APP, help="its app (default: %(default)s)")
    user.set_defaults(run=_make_user_token)
    keys = kinds.add_parser("keys", help="a new key and secret for our own sessions (SYNCBEAT_SESSION_KEYS, _SECRETS)")
    keys.set_defaults(run=_make_session_keys)
    for kind in ("service", "admin"):
        one = kinds.add_parser(kind, help=f"a new token, and its entry for SYNCBEAT_{kind.upper()}_TOKENS")
        one.add_argument("name")
        one.add_argument("--methods", default="*", help="RPC names joined by | (default: all)")
        one.add_argument("--apps", default="*", help="apps joined by | (default: all)")
        one.set_defaults(run=_make_opaque_token, kind=kind)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes <= _MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"want a number above 0, at most {_MAX_MINUTES:.0f} (a year)")
    return minutes


def _make_user_token(parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import key_rows
    from syncbeat_server.auth.tokens.verify import mint
    from syncbeat_server.clock import SystemClock

    app = read_settings().all_apps().get(parsed.app)
    rows = [] if app is None else [row for row in key_rows(parsed.app, app) if row.algorithm == "HS256"]
    if not rows:
        raise ConfigurationError(f"SYNCBEAT_JWT_SECRETS: app {parsed.app!r} has no secret to sign with")
    try:
        print(mint(rows[0], parsed.user_id, SystemClock().now(), timedelta(minutes=parsed.minutes)))
    except ValueError as error:
        raise ConfigurationError(f"token user: {error}") from None
    return 0


def _make_session_keys(_parsed: argparse.Namespace) -> int:
    from syncbeat_server.auth.tokens.keys import new_signing_key

    kid = secrets.token_hex(4)
    print(f"SYNCBEAT_SESSION_KEYS='{new_signing_key(kid).decode()}'")  # quoted for a shell and for .env alike
    print(f"SYNCBEAT_SESSION_SECRETS={kid}={secrets.token_urlsafe(32)}")
    return 0


def _make_opaque_token(parsed: argparse.Namespace) -> int:
    from syncbeat_server.ops.settings.types import NAME, token_digest

    if not re.fullmatch(NAME, parsed.name):
        raise ConfigurationError(f"token {parsed.kind}: a name is 1 to 64 of A-Z a-z 0-9 _ . -")
    if re.search(r"[:,\s]", parsed.methods + parsed.apps):
        raise ConfigurationError(f"token {parsed.kind}: --methods and --apps: want names joined by |, or *")
    _require_methods(parsed.kind, parsed.methods)
    token = secrets.token_urlsafe(32)
    entry = f"{parsed.name}:{token_digest(token)}:{parsed.methods}:{parsed.apps}"
    print(f"token (give it to the {parsed.kind}, it is shown once): {token}")
    print(f"SYNCBEAT_{parsed.kind.upper()}_TOKENS={entry}")
    return 0


def _require_methods(kind: str, methods: str) -> None:
    """Raise ConfigurationError if an allow-list holds what a server would refuse, or nothing."""
    if methods == "*":
        return
    from syncbeat_server.app import method_faults, rpc_names

    named, known = [name for name in methods.split("|") if name], rpc_names()
    faults = list(method_faults(named, known)) or ([] if named else ["nothing: want names joined by |, or *"])
    if faults:
        known_names = f"the RPCs are {', '.join(sorted(known))}"
        raise ConfigurationError("\n".join([*(f"token {kind}: --methods: {one}" for one in faults), known_names]))
