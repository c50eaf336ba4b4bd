"""Pages lists: reads page size and token of a request, and makes the token of the next page.

A token is bound to the caller and to the list that it belongs to, so that it opens no other.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import orjson

from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.rpc.pipeline.call_context import Call

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1_000

Item = TypeVar("Item")


def page_size_of(asked: int) -> int:
    """Return the items of a page: 50 unless asked for otherwise, and at most 1,000 whatever is asked for (AIP-158)."""
    return min(asked or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


class Paged(Protocol):
    """A request for one page of a list."""

    page_size: int
    page_token: str


@dataclass(frozen=True)
class Page:
    """The page of a list that a request asks for: its items have keys after `after`, empty for the first page."""

    call: Call
    filters: tuple[str, ...]
    size: int
    after: str

    @classmethod
    def of(cls, request: Paged, call: Call, *filters: str) -> Page:
        """Return the page that a request asks for; `filters` is what the list is filtered by.

        Raises:
            InvalidRequest: the token is not one of ours, or belongs to another caller or another list.
        """
        after = _key_of(request.page_token, _binding(call, filters)) if request.page_token else ""
        return cls(call, filters, page_size_of(request.page_size), after)

    @property
    def limit(self) -> int:
        """The items to fetch: one more than the page holds, which tells if there is a next one."""
        return self.size + 1

    def split(self, fetched: Sequence[Item], key: Callable[[Item], str]) -> tuple[Sequence[Item], str]:
        """Return the items of this page, and the token of the next; empty when this is the last.

        `fetched` are up to `limit` items, of which `key` returns what the list is ordered by.
        """
        if len(fetched) <= self.size:
            return fetched, ""
        items = fetched[: self.size]
        return items, self.token_after(key(items[-1]))

    def token_after(self, key: str) -> str:
        """Return the token of the page of this list that begins after a key."""
        return base64.urlsafe_b64encode(orjson.dumps([_binding(self.call, self.filters), key])).decode()


def _key_of(token: str, binding: str) -> str:
    try:
        bound_to, after = orjson.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError):
        bound_to, after = "", ""
    # U+0000 is in no key, and PostgreSQL takes it in no text.
    if bound_to != binding or not isinstance(after, str) or "\0" in after:
        raise InvalidRequest(FieldViolation("page_token", "not a token that this list answered", FieldReason.MALFORMED))
    return after


def _binding(call: Call, filters: Sequence[str]) -> str:
    return hashlib.sha256(orjson.dumps([call.method, call.caller, *filters])).hexdigest()[:16]
