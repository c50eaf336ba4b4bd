"""Runs functions that `worker_processes` names on standard input, and answers on standard output.

A request is a function's name and its arguments, an answer what it returned or raised: JSON after its length. The
process ends with its input. It runs at nice 10: only the caller with the large document waits, and not the others.
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
    """Answer requests until standard input ends."""
    os.nice(_NICE)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(header := requests.read(HEADER_BYTES)) == HEADER_BYTES:
        answer = orjson.dumps(_answer(requests.read(int.from_bytes(header))))
        answers.write(len(answer).to_bytes(HEADER_BYTES) + answer)
        answers.flush()


def _answer(request: bytes) -> tuple[str, Any]:
    name, arguments = orjson.loads(request)
    module, _, function = name.partition(":")
    try:
        return "answer", getattr(importlib.import_module(module), function)(*arguments)
    except ValueError as error:
        return "ValueError", str(error)
    except Exception as error:  # noqa: BLE001  # by its class only: its text may quote the document
        return type(error).__name__, None


if __name__ == "__main__":
    main()
