"""Subcommand `audit`: list who did what sensitive thing, from the database."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC
from typing import TYPE_CHECKING, Any

from syncbeat_server.cli.audit_log.times import utc_time
from syncbeat_server.cli.startup import open_stores, read_settings
from syncbeat_server.errors import ConfigurationError

if TYPE_CHECKING:
    from syncbeat_server.audit.model import AuditEntry, AuditFilter, EntryPlace

_PAGE = 500
_MOST = 100_000


def add_audit(commands: Any) -> None:
    """Add the subcommand and its actions to the parser."""
    audit = commands.add_parser("audit", help="list who did what sensitive thing")
    actions = audit.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = actions.add_parser(
        "list",
        help="the entries of the audit log, newest first",
        description="List the entries of the audit log, newest first, as the service's login. Entries are kept for "
        "SYNCBEAT_KEEP_AUDIT_DAYS.",
    )
    listing.add_argument("--app", metavar="NAME", help="those of one app; without it, all, also of the deployment")
    listing.add_argument("--actor", default="", help="those of an actor, as service:NAME, user:ID, operator:LOGIN@HOST")
    listing.add_argument("--action", default="", type=str.upper, help="those of an action, as USER_DELETED")
    listing.add_argument("--subject", default="", help="those about a subject, as user:ID or app:NAME")
    listing.add_argument("--since", type=utc_time, metavar="TIME", help="those of this time (ISO 8601, UTC) and later")
    listing.add_argument("--until", type=utc_time, metavar="TIME", help="those before this time")
    listing.add_argument("--limit", type=_limit, default=50, help="the most entries (default: %(default)s)")
    listing.add_argument("--json", action="store_true", help="a JSON object a line")
    listing.set_defaults(run=_list_entries)


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"want 1 to {_MOST}")
    return int(text)


def _list_entries(parsed: argparse.Namespace) -> int:
    import asyncio

    from syncbeat_server.audit.model import AuditAction, AuditFilter

    if parsed.action and parsed.action not in AuditAction.__members__:
        raise ConfigurationError(f"audit list: --action: one of {', '.join(AuditAction.__members__)}")
    settings = read_settings()
    wanted = AuditFilter(parsed.actor, parsed.action, parsed.subject, parsed.since, parsed.until)
    if settings.database_url is not None:  # it asks no Redis
        return asyncio.run(_print_entries(settings.database_url.get_secret_value(), wanted, parsed))
    if settings.embedded_dir is None:
        raise ConfigurationError("SYNCBEAT_DATABASE_URL: name the database of the deployment")
    with open_stores(settings) as (stores, _):
        return asyncio.run(_print_entries(stores.database_url, wanted, parsed))


async def _print_entries(database_url: str, wanted: AuditFilter, parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import open_audit_log
    from syncbeat_server.audit.model import EntryPlace

    after: EntryPlace | None = None
    left: int = parsed.limit
    async with open_audit_log(database_url) as log:
        while True:
            size = min(left + 1, _PAGE)  # one more tells that there are more
            page = await log.all_entries(parsed.app, wanted, after, size)
            for entry in page[:left]:
                print(_as_json(entry) if parsed.json else _as_line(entry))
            if len(page) > left:
                print(f"syncbeat-server: the newest {parsed.limit}; there are more: --limit, --until", file=sys.stderr)
                break
            left -= len(page)
            if len(page) < size:
                break
            after = EntryPlace(page[-1].occurred_at, page[-1].entry_id)
    return 0


def _as_json(entry: AuditEntry) -> str:
    return json.dumps(
        {
            "time": entry.occurred_at.astimezone(UTC).isoformat(),
            "app_id": entry.app_id,
            "action": entry.action,
            "actor": entry.actor,
            "address": entry.address,
            "subject": entry.subject,
            "details": json.loads(entry.details),
            "request_id": entry.request_id,
            "entry_id": entry.entry_id,
        },
        ensure_ascii=False,
    )


def _as_line(entry: AuditEntry) -> str:
    details = " ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in json.loads(entry.details).items()
    )
    at = entry.occurred_at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    words = (at, entry.app_id or "-", entry.action, entry.actor, entry.address or "-", entry.subject, details)
    return " ".join(json.dumps(word) if " " in word and word is not details else word for word in words).rstrip()
