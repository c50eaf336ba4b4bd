"""The bound on the log: whatever is multiplied by an outage or a caller is written once, and then counted."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from syncbeat_server.ops import logs
from syncbeat_server.ops.log_rate_limit import MAX_CAUSES, MAX_SAMPLES, WINDOW_S, RateLimitedHandler
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


class Log:
    """A logger of its own, and what was written of it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stream = io.StringIO()
        self.handler = RateLimitedHandler(self.stream, self.clock)
        self.handler.setFormatter(logs.formatter(as_json=True))
        self.logger = logging.getLogger("test.repeats")
        self.logger.propagate = False
        self.logger.setLevel(logging.DEBUG)
        self.logger.addHandler(self.handler)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    async def window(self) -> None:
        """Let a window pass, at whose end what was counted is told."""
        await self.clock.advance(WINDOW_S)
        self.handler.write_summaries()


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.logger.removeHandler(made.handler)
    made.handler.close()


def fail(log: Log, kind: type[Exception], **extra: object) -> None:
    try:
        raise kind("no answer")
    except kind:
        log.logger.warning("dependency down", exc_info=True, extra=extra)


async def test_log_rate_limit_of_an_outage_is_a_traceback_a_count_and_an_end(log: Log) -> None:
    for number in range(500):
        fail(log, ConnectionRefusedError, request_id=f"r{number}")
    (first,) = log.lines
    assert first["event"] == "dependency down"
    assert "ConnectionRefusedError: no answer" in first["exception"]
    await log.window()
    for _ in range(30):
        fail(log, ConnectionRefusedError)
    await log.window()
    await log.window()
    await log.window()
    _, one, two, over = log.lines
    assert [line["repeated"] for line in (one, two, over)] == [499, 30, 529]
    assert [line["event"] for line in (one, two, over)] == ["dependency down"] * 2 + ["over: dependency down"]
    assert over["seconds"] == WINDOW_S
    assert [sample["request_id"] for sample in one["samples"]] == [f"r{n}" for n in range(1, MAX_SAMPLES + 1)]
    assert not any("exception" in line for line in (one, two, over))
    # What comes later is a trouble of its own, and told whole again.
    fail(log, ConnectionRefusedError)
    assert "exception" in log.lines[-1]


async def test_log_rate_limit_spares_rare_records(log: Log) -> None:
    for _ in range(5):
        fail(log, TimeoutError)
        await log.window()
    assert len(log.lines) == 5
    assert all("exception" in line for line in log.lines)


async def test_log_rate_limit_key_is_error_and_place(log: Log) -> None:
    for _ in range(3):
        fail(log, ConnectionRefusedError)
        fail(log, TimeoutError)
        log.logger.warning("cannot look", extra={"reason": "DEPENDENCY_DOWN", "session": "s1"})
        log.logger.warning("cannot look", extra={"reason": "OVERLOADED"})
        log.logger.error("cannot look", extra={"reason": "OVERLOADED"})
    assert len(log.lines) == 5
    log.handler.write_summaries()
    assert [line["repeated"] for line in log.lines[5:]] == [2] * 5
    assert [line.get("reason") for line in log.lines[7:]] == ["DEPENDENCY_DOWN", "OVERLOADED", "OVERLOADED"]
    assert log.lines[7]["samples"] == [{"session": "s1"}] * 2


async def test_log_rate_limit_key_ignores_numbers_and_addresses(log: Log) -> None:
    for number in range(1_000):
        log.logger.error(f"Task exception was never retrieved: Task-{number} at 0x7f{number:x}\n{number}")  # noqa: G004  # as asyncio
    assert len(log.lines) == 1
    log.handler.write_summaries()
    assert log.lines[-1]["repeated"] == 999


async def test_log_rate_limit_bounds_its_keys_and_counts_all(log: Log) -> None:
    words = [f"{a}{b}{c}" for a in "abcdefghijklm" for b in "abcdefghijklm" for c in "abcdefghijklm"]
    for word in words:
        log.logger.warning(word)
    log.handler.write_summaries()
    *whole, many = log.lines
    assert len(whole) == MAX_CAUSES + 1
    assert (many["event"], many["repeated"]) == ("messages of many kinds", len(words) - MAX_CAUSES - 1)


async def test_log_rate_limit_spares_info_records(log: Log) -> None:
    for _ in range(50):
        log.logger.info("delivered to nobody")
    assert len(log.lines) == 50


async def test_log_rate_limit_counts_are_flushed_at_exit(log: Log) -> None:
    for _ in range(3):
        fail(log, OSError)
    log.handler.close()
    assert log.lines[-1]["repeated"] == 2


async def test_log_rate_limit_survives_an_unformattable_record(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    class Unreadable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.handler.handle(logging.makeLogRecord({"msg": Unreadable(), "levelno": logging.WARNING}))
    log.logger.warning("good")
    assert [line["event"] for line in log.lines] == ["good"]
    assert "Logging error" in capsys.readouterr().err


async def test_log_rate_limit_bounds_what_callers_provoke_below_warnings(log: Log) -> None:
    for number in range(50):
        log.logger.info("a token was refused", extra={"cause": "audience", "detail": f"`aud` is {number}"})
        log.logger.info("a token was refused", extra={"cause": "expired", "detail": "over"})
        log.logger.info("apps read anew", extra={"apps": number})
    await log.window()
    refused = [line for line in log.lines if line["event"] == "a token was refused"]
    assert [(line["cause"], line["level"], line.get("repeated")) for line in refused] == [
        ("audience", "info", None),
        ("expired", "info", None),
        ("audience", "info", 49),
        ("expired", "info", 49),
    ]
    assert len(log.lines) == 4 + 50, "what names no fault is not bounded"
