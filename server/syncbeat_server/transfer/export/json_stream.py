"""Writes a JSON document piece by piece, so that no document has to fit into memory. Does no I/O of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class JsonStream:
    """Writes nested objects and arrays; each member of the outer two levels begins a line.

    Values are given as JSON text and written as they are: a number keeps each digit that it has.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._counts: list[int] = []

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
        with self._nested(key, "{}"):
            yield

    @contextmanager
    def array(self, key: str | None = None) -> Iterator[None]:
        """Write an array for the block, as `object` does an object."""
        with self._nested(key, "[]"):
            yield

    def begin_object(self, key: str | None = None) -> None:
        """Begin an object that `end_object` ends, where its end is known only later."""
        if self._counts or key is not None:
            self._separate()
        if key is not None:
            self._write(f"{json.dumps(key, ensure_ascii=False)}:")
        self._write("{")
        self._counts.append(0)

    def end_object(self) -> None:
        """End the object that `begin_object` began last."""
        self._counts.pop()
        self._write("}" if self._counts else "}\n")

    @contextmanager
    def _nested(self, key: str | None, marks: str) -> Iterator[None]:
        if self._counts or key is not None:
            self._separate()
        if key is not None:
            self._write(f"{json.dumps(key, ensure_ascii=False)}:")
        self._write(marks[0])
        self._counts.append(0)
        yield
        self._counts.pop()
        self._write(marks[1] if self._counts else f"{marks[1]}\n")

    def _separate(self) -> None:
        if self._counts[-1]:
            self._write(",")
        if len(self._counts) <= _LINES:
            self._write("\n")
        self._counts[-1] += 1


_LINES = 4
