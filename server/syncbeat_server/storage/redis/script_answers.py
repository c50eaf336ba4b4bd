"""Judges the answers of scripts: what a server says that is no Redis of ours counts as an outage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from syncbeat_server.errors import DependencyDown

NO_ANSWER = "redis does not answer as it should"


@contextmanager
def parsed_answer() -> Iterator[None]:
    """Turn what is wrong with an answer, as its block parses it, into DependencyDown."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise DependencyDown(NO_ANSWER) from error
