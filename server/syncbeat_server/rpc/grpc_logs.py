"""Keeps failed TLS handshakes and callers that left, which no operator can mend, out of what gRPC itself logs."""

from __future__ import annotations

import logging
import os

_GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


def silence_failed_handshakes() -> None:
    """Let gRPC's core log errors alone, as it logs a line for each failed handshake. Call it before grpc is imported.

    A level that the operator has set (`GRPC_VERBOSITY`) stays.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def silence_departed_callers() -> None:
    """Drop the tracebacks that grpc.aio logs when a caller leaves while a message is on its way."""
    _GRPC_LOG.addFilter(_is_worth_logging)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    # A failure to send the status is kept: wrong trailing metadata causes it too.
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError" or "SendStatus" in str(error)
