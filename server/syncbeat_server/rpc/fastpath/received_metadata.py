"""Keeps the metadata of a call that gRPC has already decoded to choose the handler.

`ServicerContext.invocation_metadata()`, the plain version this stands for, decodes and copies all of it anew for each
call. Paid for by the figure `hint_vs_echo`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar

import grpc

Metadata = Sequence[tuple[str, str | bytes]]

received_metadata: ContextVar[Metadata | None] = ContextVar("received_metadata", default=None)
"""The metadata of the call that this context serves; None where no handler look-up has set it."""


def metadata_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> Iterable[tuple[str, str | bytes]]:
    """Return the metadata of a call in its order on the wire; empty if there is none."""
    return received_metadata.get() or context.invocation_metadata() or ()
