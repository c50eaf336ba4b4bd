"""Shares the room of one batch of feed reads fairly between callers. Pure.

A caller with a hundred requests takes turns with a caller of one, and no request is deferred for ever.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.sync.model import Cursor, FeedPage

PAGE_OCTETS = 1 << 20
"""Octets that the pages of one call, and of one batch of calls, hold together; one change may be larger. The receivers
of gRPC take 4 MiB unless configured otherwise."""
READS_PER_STATEMENT = 256

Caller = tuple[str, str | None]
"""The app and the user, None for a service."""
Pages = list[FeedPage | None]


class PageRequest(NamedTuple):
    """Asks for the pages after some cursors; `deferrals` counts the batches that had no room for any of them."""

    app_id: str
    user_id: str | None
    cursors: tuple[Cursor, ...]
    limit: int
    deferrals: int = 0

    @property
    def caller(self) -> Caller:
        """Return the caller that takes turns with the others."""
        return self.app_id, self.user_id


def round_robin(requests: Sequence[PageRequest], last_served: Mapping[Caller, int]) -> list[int]:
    """Return the indexes of requests in the order in which they get room.

    First the most deferred request of each caller, then their second ones, and so on. Callers who were served longest
    ago go first; of those served at the same time, the one whose request is older.
    """
    of_callers: defaultdict[Caller, list[int]] = defaultdict(list)
    for index in sorted(range(len(requests)), key=lambda index: -requests[index].deferrals):
        of_callers[requests[index].caller].append(index)
    callers = sorted(of_callers, key=lambda caller: last_served.get(caller, 0))
    turns = itertools.zip_longest(*(of_callers[caller] for caller in callers))
    return [index for turn in turns for index in turn if index is not None]


def within_share(caller: Caller, pages: Pages, sent: Counter[Caller]) -> Pages | None:
    """Return the pages if all that this batch sends to their caller fits in `PAGE_OCTETS`; the first always does.

    Pages of the same feed are read once, but each answer takes room on the wire.
    """
    octets = octets_of(pages)
    if sent[caller] and sent[caller] + octets > PAGE_OCTETS:
        return None
    sent[caller] += octets
    return pages


def octets_of(pages: Pages) -> int:
    """Return about the octets that the values of pages take on the wire."""
    return sum(len(change.value_json) for page in pages if page is not None for change in page.changes)


def statements(order: Sequence[int], requests: Sequence[PageRequest], most: int) -> Iterator[list[int]]:
    """Yield indexes of requests in groups for one statement each: at least one request, and at most `most` pages."""
    group: list[int] = []
    reads = 0
    for index in order:
        count = len(requests[index].cursors)
        if group and reads + count > most:
            yield group
            group, reads = [], 0
        group.append(index)
        reads += count
    yield group
