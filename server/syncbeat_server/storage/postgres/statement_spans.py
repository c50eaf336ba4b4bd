"""Makes the spans of statements, by the semantic conventions 1.45 for databases (PostgreSQL).

https://github.com/open-telemetry/semantic-conventions/blob/v1.45.0/docs/db/postgresql.md. A span names the statement by
its summary and never by its text, whose parameters would be the next thing to be wanted there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from syncbeat_server.ops.tracing.spans import Span, SpanKind

_WRITES = re.compile(r"\b(INSERT INTO|DELETE FROM|(?<!FOR )(?<!KEY )(?<!DO )UPDATE)\s+([a-z_]+)", re.IGNORECASE)
_READS = re.compile(r"\bFROM\s+([a-z_]+)", re.IGNORECASE)
_FIRST_WORD = re.compile(r"\s*([A-Za-z]+)")


class _Summary(NamedTuple):
    name: str
    attributes: Mapping[str, str]


def statement_span(parent: Span, statement: str) -> Span:
    """Start the span of a statement below that of the work it is for."""
    summary = _summary(statement)
    return parent.child(summary.name, SpanKind.CLIENT, summary.attributes)


@lru_cache(maxsize=1_000)
def _summary(statement: str) -> _Summary:
    """Return operation and table of a statement; of one with several parts those of the first that writes."""
    found = _WRITES.search(statement)
    if found is not None:
        operation, table = found[1].split()[0].upper(), found[2]
    else:
        first, read = _FIRST_WORD.match(statement), _READS.search(statement)
        operation = "SELECT" if read is not None or first is None else first[1].upper()
        table = "" if read is None else read[1]
    name = f"{operation} {table}".rstrip()
    attributes = {"db.system.name": "postgresql", "db.operation.name": operation, "db.query.summary": name}
    return _Summary(name, attributes | ({"db.collection.name": table} if table else {}))
