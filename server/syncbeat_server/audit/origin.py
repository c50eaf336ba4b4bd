"""Carries who acts, from where, through the code that serves one call or command, for the entries that it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from syncbeat_server.audit.model import Details


def nowhere() -> str:
    """Return the address of what did not come over a connection: none."""
    return ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Says who acts, as `service:backend`, from which address, in which call, and for what cause.

    `address` is asked for entries alone, since most calls write none. `cause` is added to the details of each entry.
    """

    actor: str
    address: Callable[[], str] = nowhere
    request_id: str = ""
    cause: Details = field(default_factory=dict)


SERVICE_ITSELF = Origin("process")
"""Of what nobody asked for: background tasks."""

origin: ContextVar[Origin] = ContextVar("audit_origin", default=SERVICE_ITSELF)


@contextmanager
def acting_for(actor: str, cause: Details) -> Iterator[None]:
    """Act on behalf of `actor` for the block; the address stays if that is the caller."""
    caller = origin.get()
    address = caller.address if caller.actor == actor else nowhere
    token = origin.set(Origin(actor, address, caller.request_id, cause))
    try:
        yield
    finally:
        origin.reset(token)
