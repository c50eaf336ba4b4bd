"""A process of its own that does what `aside.py` asks on its standard input, and answers on its standard output.

A question is a function's name and its arguments, an answer what it returned or raised: JSON behind its length. It ends
when its input does. It runs behind everybody else (nice 10): who waits for a large document waits, and not the others.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import orjson

HEADER_BYTES = 4
_NICE = 10


def main() -> None:
    """Answer question after question."""
    os.nice(_NICE)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(header := asked.read(HEADER_BYTES)) == HEADER_BYTES:
        answer = orjson.dumps(_answer(asked.read(int.from_bytes(header))))
        answers.write(len(answer).to_bytes(HEADER_BYTES) + answer)
        answers.flush()


def _answer(question: bytes) -> tuple[str, Any]:
    name, arguments = orjson.loads(question)
    module, _, function = name.partition(":")
    try:
        return "answer", getattr(importlib.import_module(module), function)(*arguments)
    except ValueError as error:
        return "ValueError", str(error)
    except Exception as error:  # noqa: BLE001  # by its kind only: what it says may hold what the document says
        return type(error).__name__, None


if __name__ == "__main__":
    main()
