"""Holds how long a process waits for PostgreSQL, and after how long PostgreSQL ends its transactions."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import NamedTuple

from syncbeat_server.ops.work_origin import WorkRank

STATEMENT_TIMEOUT_S = 8.0
"""Seconds after which the server ends a statement of a transaction. A call has ten, so that it hears of that."""
_SHARE_OF_CALL = 0.85
# The answer may take this share of the limit longer, and never less than these seconds: 6 % of a short limit are
# milliseconds, which the way to the server and a busy loop take too, and a healthy server would look silent.
_ANSWER_SHARE, _LEAST_ANSWER_MARGIN_S = 1.06, 0.2
ANSWER_TIMEOUT_S = STATEMENT_TIMEOUT_S * _ANSWER_SHARE
"""Seconds after which a statement that was neither answered nor ended by the server was never heard of."""
_FIRST_STEP_S, _STEP = 0.02, 1.15
# Limits of statements by the time that a call has left: few, so that the statements which set them are few.
_STEPS = [_FIRST_STEP_S * _STEP**number for number in range(43)]

# Who is sent away first has the least to lose: background work comes again by itself, and a device asks again.
_SHARE_OF_WAIT = {WorkRank.BACKGROUND: 0.5, WorkRank.CALL: 0.75, WorkRank.PROMISE: 1.0}


@dataclass(frozen=True)
class ConnectionLife:
    """The life of a connection: at most `most_s` seconds, up to a tenth less, and `idle_s` without work."""

    most_s: float = 1_800.0
    idle_s: float = 10.0


DEFAULT_LIFE = ConnectionLife()


class BeginStatements(NamedTuple):
    """The statements that begin a transaction: on any server, and on one that has `transaction_timeout`.

    `answer_s`: seconds within which a server that is there answers each statement, or ends it.
    """

    plain: str
    bounded: str
    answer_s: float


@dataclass(frozen=True)
class DatabaseTimings:
    """Times that no setting changes; tests give longer ones where a busy machine must not matter."""

    connect_s: float = 5.0
    """Seconds that the pool waits for the server to accept a connection."""
    longest_wait_s: float = 8.0
    """Seconds that a publish or acknowledgement waits for one of the pool's connections to be free; a call waits three
    quarters of it, background work half. A call has ten seconds, of which its own statements take a few."""
    first_pause_s: float = 0.1
    """A full server is asked for one more connection after this many seconds, then after twice as many each time, by
    all callers of a process together, since other processes share it."""
    probe_s: float = 2.0
    """Seconds within which a server that is suspected to be away has to answer on a new connection: a greeting, then a
    statement. One whose every answer comes half a second late is slow, and not away."""
    single_answer_s: float = ANSWER_TIMEOUT_S
    """Seconds that a statement outside of transactions is waited for. No limit of the server's ends it before."""
    lock_ms: int = 4_000
    idle_in_transaction_ms: int = 6_000
    """A process that vanishes, or is stopped, holds its locks until the database ends its session. This is longer than
    a busy loop or a paused machine keeps a transaction waiting (4 s were seen), and shorter than two waits for its
    locks, so that a call refused once succeeds when it is repeated."""
    transaction_ms: int = 10_000
    """Since PostgreSQL 17. It also ends a session that waits for the second part of a statement; on earlier versions
    storage/postgres/stuck_sessions.py does."""

    def wait_s(self, rank: WorkRank) -> float:
        """Return the seconds that work of this rank waits for a connection to be free."""
        return self.longest_wait_s * _SHARE_OF_WAIT[rank]

    def begin(self, statement_s: float = STATEMENT_TIMEOUT_S) -> BeginStatements:
        """Return the statements that begin a transaction with these limits, each statement of which ends in time.

        The server ends a statement as soon as the client gives it up, also when no client is left to cancel it.
        """
        plain = f"""BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = {self.lock_ms};
SET LOCAL idle_in_transaction_session_timeout = {self.idle_in_transaction_ms};
SET LOCAL statement_timeout = {round(statement_s * 1000)};
SET LOCAL tcp_user_timeout = 15000"""
        answer_s = max(statement_s * _ANSWER_SHARE, statement_s + _LEAST_ANSWER_MARGIN_S)
        return BeginStatements(plain, f"{plain};\nSET LOCAL transaction_timeout = {self.transaction_ms}", answer_s)


def waiting_for_locks(begin: BeginStatements, lock_s: float) -> BeginStatements:
    """Return the statements with a wait for each lock of so many seconds at most."""
    limit = f";\nSET LOCAL lock_timeout = {round(lock_s * 1000)}"
    return BeginStatements(begin.plain + limit, begin.bounded + limit, begin.answer_s)


class BeginsInTime:
    """The statements that begin a transaction, by the time that is left for it."""

    def __init__(self, timings: DatabaseTimings) -> None:
        self.any_time = timings.begin()
        self._within = [timings.begin(step) for step in _STEPS]

    def within(self, seconds: float) -> BeginStatements | None:
        """Return those with a limit below `seconds`, by enough that a caller with so much time left hears of its end.

        None if a transaction has no chance in that time.
        """
        statement_s = seconds * _SHARE_OF_CALL
        if statement_s >= STATEMENT_TIMEOUT_S:
            return self.any_time
        number = bisect.bisect_right(_STEPS, statement_s)
        return self._within[number - 1] if number else None


DEFAULT_TIMINGS = DatabaseTimings()
