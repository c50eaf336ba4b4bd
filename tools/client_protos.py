"""Writes the protos that clients compile: those of the server without the options that only the server reads.

`client_protos.py FROM TO` writes each file of FROM/syncbeat/v1 that something of a client's is in to TO/syncbeat/v1.
Comments and the file options of the languages stay. `make gen` runs it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path("syncbeat/v1")
SERVER_ONLY = frozenset({"access.proto", "field_rules.proto"})
"""The protos that declare the options."""
NOTICE = "// Generated from protos/ by `make gen`, without the options that only the server reads.\n"

_TOKEN = re.compile(r'//[^\n]*\n|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|\w+|\s+|.', re.DOTALL)
_CLOSING = {"[": "]", "{": "}", "(": ")"}


def main(source: Path, target: Path) -> int:
    """Write the client's protos."""
    (target / PACKAGE).mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in (source / PACKAGE).glob("*.proto") if path.name not in SERVER_ONLY)
    for path in files:
        text = NOTICE + without_own_options(path.read_text(encoding="utf-8"))
        (target / PACKAGE / path.name).write_text(text, encoding="utf-8")
    return 0


def without_own_options(text: str) -> str:
    """Return a proto's text without custom options and without imports of the files that declare them."""
    tokens = _TOKEN.findall(text)
    kept: list[str] = []
    at = 0
    while at < len(tokens):
        end = at + 1
        if tokens[at] in ("option", "import"):
            end = _end(tokens, at, ";")
            statement = "".join(tokens[at:end])
            if _is_dropped(statement):
                while kept and kept[-1].isspace():
                    kept.pop()
                statement = ""
            kept.append(statement)
        elif tokens[at] == "[":
            end = _end(tokens, at, "]")
            kept.append(_field_options("".join(tokens[at + 1 : end - 1])))
            if not kept[-1] and kept[-2].isspace():
                del kept[-2:]
        else:
            kept.append(tokens[at])
        at = end
    return re.sub(r"(\breturns \([^)]*\)) \{\s*\}", r"\1;", "".join(kept))


def _is_dropped(statement: str) -> bool:
    imported = re.fullmatch(r'import "(.+)";', statement)
    if imported is None:
        return statement.startswith("option (")
    return imported[1].startswith("buf/") or Path(imported[1]).name in SERVER_ONLY


def _field_options(inner: str) -> str:
    """Return the options of a field in their brackets without custom ones; empty when none is left."""
    kept = [option.strip() for option in _split(inner) if option.strip() and not option.strip().startswith("(")]
    return f"[{', '.join(kept)}]" if kept else ""


def _split(inner: str) -> Iterator[str]:
    tokens, start, at = _TOKEN.findall(inner), 0, 0
    while at < len(tokens):
        if tokens[at] in _CLOSING:
            at = _end(tokens, at, _CLOSING[tokens[at]])
            continue
        if tokens[at] == ",":
            yield "".join(tokens[start:at])
            start = at + 1
        at += 1
    yield "".join(tokens[start:])


def _end(tokens: list[str], at: int, closing: str) -> int:
    """Return the place after the token that ends what begins at `at`, brackets within it being whole."""
    at += 1
    while tokens[at] != closing:
        at = _end(tokens, at, _CLOSING[tokens[at]]) if tokens[at] in _CLOSING else at + 1
    return at + 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
