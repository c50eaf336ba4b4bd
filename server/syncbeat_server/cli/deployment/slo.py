"""Subcommand `slo`: print the report on a deployment's objectives, and enter figures from outside."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from syncbeat_server.cli.audit_log.operator import operator_name
from syncbeat_server.cli.deployment.target import add_target, number_between, read_target
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.rpc.grpc_logs import silence_failed_handshakes

_EXITS = {"OK": 0, "WARN": 3, "ROLLBACK": 4}
_LEAST_WINDOW_S, _MOST_WINDOW_S = 60.0, 2_592_000.0


def add_slo(commands: Any) -> None:
    """Add the subcommand and its actions to the parser."""
    slo = commands.add_parser("slo", help="whether the deployment keeps its objectives, by GetSloReport")
    actions = slo.add_subparsers(title="actions", required=True, metavar="ACTION")
    report = actions.add_parser(
        "report",
        help="print the verdict, with each figure and its thresholds",
        description="Ask a server for the report on the objectives of its deployment and print it. Exits 0 for OK, 3 "
        "for WARN and 4 for ROLLBACK; 1 if there is no report. The token is one of SYNCBEAT_SERVICE_TOKENS that may "
        "call GetSloReport.",
    )
    add_target(report)
    report.add_argument("--app", default="", help="the app for which the token acts (default: its only one)")
    report.add_argument(
        "--window",
        type=number_between(_LEAST_WINDOW_S, _MOST_WINDOW_S),
        metavar="SECONDS",
        help="how far to look back, 60 to 2592000 (default: an hour)",
    )
    report.add_argument("--json", action="store_true", help="print GetSloReportResponse as JSON, in one line")
    report.add_argument(
        "--compare",
        type=Path,
        metavar="EARLIER",
        help="an earlier report by --json: a p95 or the CPU of a call that grew by more than 25 %% comes to WARN",
    )
    report.set_defaults(run=_report)
    put = actions.add_parser(
        "put",
        help="enter a figure from outside, such as complaints",
        description="Write a figure that SYNCBEAT_SLO_FIGURES names to the database of SYNCBEAT_DATABASE_URL, in place "
        "of its last value. It counts for SYNCBEAT_SLO_FIGURE_AGE_S.",
    )
    put.add_argument("name", metavar="NAME", help="the figure")
    put.add_argument("value", metavar="VALUE", type=float, help="its value")
    put.set_defaults(run=_put)


def _report(parsed: argparse.Namespace) -> int:
    silence_failed_handshakes()  # before grpc is imported
    import asyncio

    from syncbeat_server.cli.deployment.slo_table import compared, report_table, verdict_of
    from syncbeat_server.rpc.status_client import ask_slo_report

    earlier = None if parsed.compare is None else _earlier(parsed.compare)
    answer = asyncio.run(ask_slo_report(read_target(parsed), parsed.app, parsed.window))
    if earlier is not None:
        answer = compared(answer, earlier)
    print(json.dumps(answer, ensure_ascii=False) if parsed.json else report_table(answer))
    return _EXITS[verdict_of(answer)]


def _earlier(file: Path) -> dict[str, Any]:
    from syncbeat_server.cli.deployment.slo_table import is_report
    from syncbeat_server.ops.files import FileFault, read_file

    try:
        found = json.loads(read_file(file))
    except FileFault as fault:
        raise ConfigurationError(f"--compare: {fault}") from None
    except ValueError:
        found = None
    if not is_report(found):
        raise ConfigurationError(f"--compare: {file}: want a report as 'slo report --json' prints it")
    return dict(found)


def _put(parsed: argparse.Namespace) -> int:
    import asyncio

    from syncbeat_server.cli.startup import read_settings

    settings = read_settings()
    if settings.database_url is None:
        raise ConfigurationError("SYNCBEAT_DATABASE_URL: name the database of the deployment")

    async def put(url: str) -> None:
        from syncbeat_server.app import open_figures
        from syncbeat_server.audit.origin import Origin, origin

        origin.set(Origin(operator_name()))

        async with open_figures(settings, url) as enter:
            await enter(parsed.name, parsed.value)

    asyncio.run(put(settings.database_url.get_secret_value()))
    print(f"syncbeat-server: {parsed.name} is {parsed.value:g}")
    return 0
