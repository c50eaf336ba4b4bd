"""Tests how logs are read and cut into days: who is there, who follows what, and what is known of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncbeat_devtools.simulate.engine.log_jobs import learn_day
from syncbeat_devtools.simulate.fleet.devices import DAY
from syncbeat_devtools.simulate.fleet.log_days import DayKey, last_days, log_day
from syncbeat_devtools.simulate.fleet.log_lines import LogFormat, read_lines
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from tests.simulate.made_logs import START, Message, talk, write_messages

pytestmark = pytest.mark.unit


def day_of(path: Path, number: int, history_days: int = 2) -> DayKey:
    """Return a day of a log of messages."""
    return DayKey(path, LogFormat.MESSAGES, START + number * DAY, history_days)


def test_messages_are_changes_of_their_pair(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("source target time\n# a comment\nb a 100\na,b,200\na a 300\n\na c 90000 5\n", encoding="utf-8")
    lines = read_lines(path, LogFormat.MESSAGES)
    assert [(line.at, line.scope, line.device, line.kind) for line in lines] == [
        (100.0, "a b", "b", "change"),
        (100.0, "a b", "a", "open"),
        (200.0, "a b", "a", "change"),
        (200.0, "a b", "b", "open"),
        (90000.0, "a c", "a", "change"),
        (90000.0, "a c", "c", "open"),
    ]


@pytest.mark.parametrize("line", ["a b", "a b noon"])
def test_messages_refuse_lines_without_a_time(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(f"a b 100\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="line 2"):
        read_lines(path, LogFormat.MESSAGES)


def test_devices_see_what_others_wrote_since_they_came(tmp_path: Path) -> None:
    messages: list[Message] = [
        (10.0, "old", "gone"),  # three days before the measured one: neither is there
        (DAY + 5.0, "a", "b"),
        (2 * DAY + 7.0, "b", "a"),
        (3 * DAY + 100.0, "a", "b"),
        (3 * DAY + 200.0, "a", "new"),  # it comes with this message, and lists it
        (3 * DAY + 300.0, "a", "new"),
        (4 * DAY + 1.0, "a", "b"),  # the next day
    ]
    day = log_day(day_of(write_messages(tmp_path / "log.txt", messages), 3))
    assert day.names == ("a", "b", "new")
    a, b, new = day.devices
    assert (a.changes, a.history) == ((), (-DAY + 7.0,))
    assert (b.changes, b.history, b.born) == ((100.0,), (), -2 * DAY + 5.0)
    assert (new.changes, new.born) == ((300.0,), 200.0)
    assert day.active["a"] == (-2 * DAY + 5.0, 100.0, 200.0, 300.0)
    assert "new" not in day.active


def test_last_days_are_whole_ones(tmp_path: Path) -> None:
    lines = read_lines(
        write_messages(tmp_path / "log.txt", [(0.0, "a", "b"), (2.5 * DAY, "a", "b")]), LogFormat.MESSAGES
    )
    assert last_days(lines, 1) == (START + DAY,)
    assert last_days(lines, 2) == (START, START + DAY)
    with pytest.raises(ConfigurationError, match="the log has 2 whole days"):
        last_days(lines, 3)
    longer = read_lines(
        write_messages(tmp_path / "longer.txt", [(0.0, "a", "b"), (2.9 * DAY, "a", "b")]), LogFormat.MESSAGES
    )
    assert last_days(longer, 1) == (START + 2 * DAY,)


def test_prior_is_fitted_to_the_day_before(tmp_path: Path) -> None:
    messages = talk(4, 30, 1)
    path = write_messages(tmp_path / "log.txt", messages)
    learned = learn_day(day_of(path, 2))
    assert learned.prior != DEFAULT_PRIOR
    later = [message for message in messages if message[0] < 2 * DAY] + talk(4, 30, 2)[-200:]
    other = write_messages(tmp_path / "other.txt", sorted(later))
    changed = learn_day(day_of(other, 2))
    assert (changed.prior, changed.device_rate) == (learned.prior, learned.device_rate)
    assert learn_day(day_of(path, 2, history_days=0)).prior == DEFAULT_PRIOR
