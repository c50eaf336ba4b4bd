"""Renders a report as one page of HTML that needs nothing beside it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from syncbeat_devtools.soak.report.plot import Line, Threshold, draw, draw_strip
from syncbeat_devtools.soak.report.progress import figure, milliseconds, span
from syncbeat_devtools.soak.report.style import STYLE

_OPERATIONS = ("poll", "list", "publish", "refresh", "event", "push", "stream")

Point = Mapping[str, Any]


def render_page(document: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    verdict = document["verdict"]
    parts = [
        f"<h1>Soak of {escape(document['target'])}</h1>",
        f"<p class='verdict {verdict.lower()}'>{verdict}</p>",
        _facts(document),
        _triggers(document),
        *_plots(document),
        _operations(document),
        _rest(document),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<meta name='color-scheme' content='light dark'><title>Soak: {verdict}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _facts(document: Mapping[str, Any]) -> str:
    run, server = document["run"], document["server"]
    lives = document["lives"]
    own = f"its own {document['own_verdict']}, the server's {server['verdict'] or 'none'}"
    if server["why_no_verdict"]:
        own += f" ({server['why_no_verdict']})"
    facts = [
        ("time", f"{span(document['elapsed_s'])}, from {document['started']} to {document['ended']}"),
        ("resumed", "never" if lives == 1 else f"{lives - 1} times"),
        (
            "load",
            f"{run['rate']:g} calls a second as planned, {run['devices']:,} devices that poll, seed {run['seed']}",
        ),
        ("verdicts", own),
        ("error budget left", _percent(document["error_budget_remaining"])),
        ("sent late, p95", milliseconds(document["sent_late"]["p95_s"])),
        ("memory grows", _with(server["rss_mib_per_hour"], "MiB/h")),
        ("CPU of a call", milliseconds(server["cpu_s_per_call"])),
        ("version of the test", document["version"]),
    ]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f"<dl>{rows}</dl>"


def _triggers(document: Mapping[str, Any]) -> str:
    rows = [
        (
            f"<td class='{one['verdict'].lower()}'>{one['verdict']}</td>",
            f"<td>{escape(one['name'])}</td>",
            f"<td>{_figure(one, 'value')}</td>",
            f"<td>{_figure(one, 'warn_threshold')}</td>",
            f"<td>{'' if one['rollback_threshold'] is None else _figure(one, 'rollback_threshold')}</td>",
        )
        for one in (*document["triggers"], *_of_server(document))
    ]
    heads = ("verdict", "figure", "value", "WARN above", "ROLLBACK above")
    return _table("What the verdict comes from", heads, rows, style="text")


def _figure(trigger: Mapping[str, Any], name: str) -> str:
    return escape(figure(trigger[name], trigger["unit"]))  # the server chooses the units of its own


def _of_server(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**one, "name": f"the server's {one['name']}"} for one in document["server"]["triggers"]]


def _operations(document: Mapping[str, Any]) -> str:
    rows = [
        (
            f"<td>{escape(name)}</td>",
            f"<td>{one['calls']:,}</td>",
            f"<td>{one['per_second']:.2f}</td>",
            f"<td>{one['errors']:,}</td>",
            *(f"<td>{milliseconds(one[key])}</td>" for key in ("p50_s", "p95_s", "p99_s", "max_s")),
        )
        for name, one in document["operations"].items()
    ]
    return _table("Operations", ("operation", "calls", "a second", "failed", "p50", "p95", "p99", "longest"), rows)


def _rest(document: Mapping[str, Any]) -> str:
    push = document["push"]
    counted = [(f"failed: {name}", count) for name, count in document["causes"].items()]
    counted += [(f"delivery {state}", count) for state, count in push["states"].items()]
    rows = [(f"<td>{escape(name)}</td>", f"<td>{count:,}</td>") for name, count in counted]
    ages = [
        (
            f"<td>by {escape(way)}</td>",
            f"<td>{one['changes']:,}</td>",
            *(f"<td>{_with(one[key], 's')}</td>" for key in ("mean_s", "p50_s", "p95_s", "p99_s")),
        )
        for way, one in document["staleness"].items()
    ]
    heads = ("heard of", "changes", "mean", "p50", "p95", "p99")
    return _table("Age of changes when a device hears of them", heads, ages) + _table(
        "Failures and deliveries", ("cause or state", "number"), rows
    )


def _plots(document: Mapping[str, Any]) -> list[str]:
    points, aims = document["series"]["points"], document["objectives"]
    width_s = document["series"]["width_s"]
    named = [name for name in _OPERATIONS if name in document["operations"]]

    def line(name: str, style: str, value: Callable[[Point], float | None]) -> Line:
        return Line(name, style, [(one["at_s"], value(one)) for one in points])

    return [
        draw_strip("Verdict about the last window", _spans(document), document["elapsed_s"] or 1.0),
        draw(
            "Latency from the planned moment, 95th percentile",
            [line(name, name, lambda one, name=name: one["p95_s"].get(name)) for name in named],  # type: ignore[misc]  # a default binds the loop's name
            unit="s",
            thresholds=[Threshold("hint", aims["hint_p95_s"]), Threshold("all", aims["p95_s"])],
            logarithmic=True,
        ),
        draw(
            "Failed calls",
            [line("failed", "bad", lambda one: one["errors"] / one["calls"] if one["calls"] else None)],
            unit="%",
            thresholds=[Threshold("WARN", aims["errors"]), Threshold("ROLLBACK", aims["rollback_errors"])],
        ),
        draw("Calls a second", [line("calls", "poll", lambda one: one["calls"] / width_s)], unit=""),
        draw(
            "Age of changes when a device hears of them, mean",
            [
                line("by polls", "poll", lambda one: one["poll_staleness_mean_s"]),
                line("by streams", "stream", lambda one: one["stream_staleness_mean_s"]),
            ],
            unit="s",
            thresholds=[Threshold("polls", aims["staleness_s"])],
        ),
        draw(
            "Error budget left",
            [line("budget", "publish", lambda one: one["error_budget_remaining"])],
            unit="%",
            thresholds=[Threshold("spent", 0.0)],
        ),
        draw(
            "Memory of the server",
            [line("resident", "event", lambda one: one["rss_mib"])],
            unit="MiB",
            from_zero=False,
        ),
        draw("CPU of the server", [line("cores", "refresh", lambda one: one["cpu_cores"])], unit="cores"),
    ]


def _spans(document: Mapping[str, Any]) -> list[tuple[float, float, str]]:
    changes = document["verdict_changes"]
    ends = [at_s for at_s, _ in changes[1:]] + [document["elapsed_s"]]
    return [(at_s, end_s, verdict) for (at_s, verdict), end_s in zip(changes, ends, strict=True)] if changes else []


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f"<section><h2>{escape(title)}</h2><div class='wide'><table class='{style}'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _with(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f} {unit}"
