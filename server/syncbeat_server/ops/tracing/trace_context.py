"""Reads the W3C trace context of a caller, from whom anything may come.

Rules: https://www.w3.org/TR/trace-context/ (Recommendation of 2021-11-23), sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

TRACEPARENT_OCTETS = 55
"""The length of a traceparent of version 00, the only one that is written."""
MOST_TRACESTATE_OCTETS = 512
"""The octets of tracestate that are passed on; a longer one is left out whole, as section 3.3.1.5 lets us."""
_MOST_OCTETS = 256
_KNOWN_FLAGS = 0x03  # sampled, and of Level 2: the trace id is random
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """A span that another process has, by its ids; bit 0 of `flags` is set if it is sampled."""

    trace_id: int
    span_id: int
    flags: int
    tracestate: str = ""

    @property
    def is_sampled(self) -> bool:
        """True if its span is exported, as far as the one that named it knows."""
        return bool(self.flags & 1)

    @property
    def traceparent(self) -> str:
        """The header's value, of version 00."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"


def parse_traceparent(text: str, tracestate: str = "") -> TraceContext | None:
    """Return the context that a traceparent names, or None if it is malformed.

    One of a later version is read by what version 00 defines of it (section 4.3).
    """
    found = _FORM.fullmatch(text) if len(text) <= _MOST_OCTETS else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    context = TraceContext(int(trace_id, 16), int(span_id, 16), int(flags, 16) & _KNOWN_FLAGS, tracestate)
    return context if context.trace_id and context.span_id else None


def from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> TraceContext | None:
    """Return the trace context of a call, or None if it brought none, several or a malformed one."""
    parents: list[str] = []
    states: list[str] = []
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str):
            parents.append(value)
        elif key == "tracestate" and isinstance(value, str):
            states.append(value)
    if len(parents) != 1:
        return None
    tracestate = ",".join(states)
    return parse_traceparent(parents[0], tracestate if len(tracestate) <= MOST_TRACESTATE_OCTETS else "")
