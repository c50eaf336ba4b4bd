"""Writes a JSON document piece by piece, so that no document has to fit into memory. Does no I/O of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINES = 4
"""Of so many levels from the outside, each member begins a line."""


class JsonStream:
    """Writes nested objects and arrays.

    Values are given as JSON text and written as they are: a number keeps each digit that it has.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._open: list[tuple[str, int]] = []

    def member(self, key: str, value_json: str) -> None:
        """Write a member of the object that is open."""
        self._separate()
        self._write(f"{json.dumps(key, ensure_ascii=False)}:{value_json}")

    def item(self, value_json: str) -> None:
        """Write an item of the array that is open."""
        self._separate()
        self._write(value_json)

    @contextmanager
    def object(self, key: str | None = None) -> Iterator[None]:
        """Write an object for the block: a member with a key, the document or an item without."""
        self.begin(key)
        yield
        self.end()

    @contextmanager
    def array(self, key: str | None = None) -> Iterator[None]:
        """Write an array for the block, as `object` does an object."""
        self.begin(key, is_array=True)
        yield
        self.end()

    def begin(self, key: str | None = None, *, is_array: bool = False) -> None:
        """Begin an object or array, which `end` ends."""
        if self._open:
            self._separate()
        if key is not None:
            self._write(f"{json.dumps(key, ensure_ascii=False)}:")
        self._write("[" if is_array else "{")
        self._open.append(("]" if is_array else "}", 0))

    def end(self) -> None:
        """End what began last."""
        mark, _ = self._open.pop()
        self._write(mark if self._open else f"{mark}\n")

    def _separate(self) -> None:
        mark, count = self._open[-1]
        if count:
            self._write(",")
        if len(self._open) <= _LINES:
            self._write("\n")
        self._open[-1] = (mark, count + 1)
