"""Names the method or task on whose behalf this code runs, for statements of PostgreSQL and for who waits longest.

Each statement ends with a comment by the convention of sqlcommenter (https://google.github.io/sqlcommenter/spec/):
`/*method='GetHint'*/` or `/*task='Retention.run'*/`. It is constant for a method, so that there are no more plans and
kept statements than methods use: it has no trace, no user and no request id (ADR 150).
"""

from __future__ import annotations

from contextvars import Context, ContextVar
from enum import IntEnum
from functools import lru_cache
from urllib.parse import quote

_MOST_TEXTS = 1_000
"""Statements that an origin remembers: more than the whole service has."""


class WorkRank(IntEnum):
    """The rank of work that waits for a connection, from what is sent away first."""

    BACKGROUND = 0
    CALL = 1
    PROMISE = 2
    """Work that others have done and want to be rid of: publishes, sends, acknowledgements."""


class WorkOrigin:
    """A method or task, with the statements it has run, each joined with its comment once."""

    __slots__ = ("_texts", "comment", "name", "rank")

    def __init__(self, key: str, name: str, rank: WorkRank) -> None:
        self.name = name
        self.rank = rank
        self.comment = f"/*{key}='{quote(name, safe='')}'*/"
        self._texts: dict[str, str] = {}

    def told(self, statement: str) -> str:
        """Return the statement with the comment at its end: the same text each time, by which the driver keeps it."""
        text = self._texts.get(statement)
        if text is None:
            text = f"{statement} {self.comment}"
            if len(self._texts) < _MOST_TEXTS:
                self._texts[statement] = text
        return text


@lru_cache(maxsize=1_000)
def method_origin(name: str, rank: WorkRank = WorkRank.CALL) -> WorkOrigin:
    """Return the origin of an RPC's statements."""
    return WorkOrigin("method", name, rank)


@lru_cache(maxsize=1_000)
def task_origin(name: str, rank: WorkRank = WorkRank.BACKGROUND) -> WorkOrigin:
    """Return the origin of the statements of a task that serves no single call."""
    return WorkOrigin("task", name, rank)


def name_of(work: object) -> str:
    """Return the name of a task by its code, a coroutine or what makes one, such as `Retention.run`."""
    name: str = getattr(work, "__qualname__", type(work).__name__)
    return name.replace("<locals>.", "")


UNNAMED = task_origin("unnamed", WorkRank.CALL)
"""Of code that says nothing: one-shot commands and tests."""

work_origin: ContextVar[WorkOrigin] = ContextVar("work_origin", default=UNNAMED)


def fresh_context(origin: WorkOrigin | None = None) -> Context:
    """Return a context that is empty but for the origin: the given one, or else that of this moment.

    For tasks that outlive the call which starts them, or work for others too.
    """
    context = Context()
    context.run(work_origin.set, work_origin.get() if origin is None else origin)
    return context
