"""Triggers of the Realtime Database: here functions that a test calls itself, found by their paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TRIGGERS: dict[str, Callable[[Any], None]] = {}
"""The functions by the paths that trigger them."""


def on_value_written(*, reference: str, retry: bool) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function for a path; events whose function fails come again only with `retry`."""
    assert retry

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        TRIGGERS[reference] = function
        return function

    return register
