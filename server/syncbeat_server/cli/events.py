"""Subcommand `events`: try the mapping of a source of webhooks on a payload."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from syncbeat_server.cli.startup import read_settings
from syncbeat_server.errors import ConfigurationError


def add_events(commands: Any) -> None:
    """Add the subcommand and its actions to the parser."""
    events = commands.add_parser("events", help="try the mapping of a source of webhooks")
    actions = events.add_subparsers(title="actions", required=True, metavar="ACTION")
    trying = actions.add_parser(
        "try",
        help="print the event and the effects that a payload would have; write nothing",
        description="Print the event that a source of the apps file makes of a payload, as JSON: its id, its effects, "
        "and the methods that these stand for. Asks no store, needs no secrets of the source, and writes nothing. "
        "Exits 1 if the payload would be refused.",
    )
    trying.add_argument("source", metavar="SOURCE", help="the source, as in [apps.NAME.sources.SOURCE]")
    trying.add_argument("file", metavar="FILE", type=Path, help="a file with the body as it was sent")
    trying.add_argument("--app", metavar="NAME", help="the app, where several have a source of that name")
    trying.set_defaults(run=_try)


def _try(parsed: argparse.Namespace) -> int:
    from syncbeat_server.app import try_payload
    from syncbeat_server.ops.files import FileFault, read_file

    settings = read_settings()
    try:
        body = read_file(parsed.file)
    except FileFault as fault:
        raise ConfigurationError(f"events try: {fault}") from None
    event = try_payload(settings, parsed.source, parsed.app, body)
    if event is None:
        print(
            "syncbeat-server: nothing: the mapping has no effects for it; answered 200 and not recorded",
            file=sys.stderr,
        )
        return 0
    print(json.dumps(event, indent=2, ensure_ascii=False))
    return 0
