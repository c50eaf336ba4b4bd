"""Tells in sentences why the JSON of an export cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import InvalidOperation

import ijson

from syncbeat_server.errors import ConfigurationError


@contextmanager
def told_faults() -> Iterator[None]:
    """Raise ConfigurationError in place of the parser's errors, whose text names no export."""
    try:
        yield
    except ijson.JSONError as error:
        what = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ConfigurationError(f"the export is no JSON document: {what}") from error
    except (SystemError, ValueError, InvalidOperation) as error:
        raise ConfigurationError(
            "the export has a number that cannot be read, as of an exponent of 19 digits"
        ) from error
