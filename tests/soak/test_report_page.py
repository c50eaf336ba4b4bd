"""Tests the page of a soak: it stands alone, is well-formed, and holds nothing that was not escaped."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from syncbeat_devtools.soak.load.scrape import sum_samples
from syncbeat_devtools.soak.load.server_verdict import ServerVerdict
from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.plan import Operation
from syncbeat_devtools.soak.report.document import Circumstances, make_document
from syncbeat_devtools.soak.report.page import render_page
from syncbeat_devtools.soak.report.progress import summary
from syncbeat_devtools.soak.verdict.objectives import Objectives, Verdict

pytestmark = pytest.mark.unit

TARGET = "<b>host</b>:1"
VOID = {"meta", "line", "path", "rect", "br"}


class Page(HTMLParser):
    """Collects the elements of a page, and checks that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def render(recorder: Recorder, server: ServerVerdict | None = None) -> tuple[str, Page]:
    run = {"duration_s": 60.0, "rate": 5.0, "devices": 3, "seed": 1}
    about = Circumstances("1", TARGET, run, "then", "now", 60.0, 2, left_behind=1)
    document = make_document(recorder, Objectives(), about, server or ServerVerdict(None, "UNIMPLEMENTED"))
    assert summary(document).splitlines()[-1] == f"{document['verdict']} after 0:01:00"
    text = render_page(document)
    page = Page()
    page.feed(text)
    assert page.open == []
    return text, page


def test_soak_page_stands_alone_with_a_plot_of_each_figure() -> None:
    recorder = Recorder()
    for second in range(60):
        recorder.success(Operation.POLL, second, 0.01)
        recorder.success(Operation.PUBLISH, second, 0.02)
        recorder.staleness(second, 3.0, by_stream=second % 2 == 0)
        point = recorder.series.at(second)
        point.rss_octets, point.cpu_s = 1e8 + second, 0.1
    recorder.failure(Operation.PUSH, 30, "UNAVAILABLE <script>", is_server_fault=True)
    recorder.verdict(0.0, "OK")
    recorder.verdict(30.0, "ROLLBACK")
    text, page = render(recorder)
    assert page.names.count("svg") == 8
    assert page.links == []
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "script" not in page.names
    assert "b" not in page.names
    assert "&lt;b&gt;host" in text


def test_soak_page_of_a_run_without_calls_says_what_was_not_measured() -> None:
    text, page = render(Recorder())
    assert page.names.count("svg") == 1
    assert text.count("not measured") == 7


def test_soak_page_escapes_what_the_server_says_and_shows_figures_that_it_lacks() -> None:
    trigger = {
        "name": "<i>name</i>",
        "verdict": "OK",
        "value": 2.0,
        "warn_threshold": None,
        "rollback_threshold": None,
        "unit": "<script>alert(1)</script>",
    }
    text, page = render(Recorder(), ServerVerdict(Verdict.OK, "", (trigger,)))
    assert "script" not in page.names
    assert "i" not in page.names
    assert "<td>2 &lt;script&gt;alert(1)&lt;/script&gt;</td><td>-</td><td></td>" in text


def test_soak_reads_sums_of_prometheus_samples() -> None:
    text = (
        "# TYPE process_resident_memory_bytes gauge\n"
        'process_resident_memory_bytes{pid="1"} 1.5e+08\n'
        'process_resident_memory_bytes{pid="{2}"} 50 1700000000\n'
        "process_cpu_seconds_total 12.5\n"
        "process_cpu_seconds_total_more 1\n"
    )
    found = sum_samples(text, ("process_resident_memory_bytes", "process_cpu_seconds_total", "absent"))
    assert found == {"process_resident_memory_bytes": 1.5e8 + 50, "process_cpu_seconds_total": 12.5}
    with pytest.raises(ValueError, match="float"):
        sum_samples("process_cpu_seconds_total\n", ("process_cpu_seconds_total",))
    for number in ("NaN", "+Inf"):
        with pytest.raises(ValueError, match="finite"):
            sum_samples(f"process_cpu_seconds_total {number}\n", ("process_cpu_seconds_total",))
