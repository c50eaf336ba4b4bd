"""Describes every limit in Markdown, from ratelimit/catalog.py."""

from __future__ import annotations

from syncbeat_server.ratelimit.catalog import CATALOG

HEAD = """# Every limit

Each of these is decided by one function (`ratelimit/policy/decision.py`), with the bound that stands here. An error
RATE_LIMITED has RetryInfo and `grpc-retry-pushback-ms`, and in the metadata of its ErrorInfo `limit`, `remaining` and
`reset` (seconds). What bounds callers before anybody knows them is in [what is bounded](../limits.md); tiers and rates
of an app are in [limits of calls](../limits.md#rates-of-callers).

| limit | default | counted by | without Redis | refused with |
| --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page as Markdown."""
    rows = ((one.name, one.default, one.counted, one.without_redis, one.refusal) for one in CATALOG)
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
