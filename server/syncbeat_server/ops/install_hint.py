"""Says how to add an extra to this very installation, from where it was installed."""

from __future__ import annotations

import json
import shlex
from importlib.machinery import PathFinder
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "syncbeat"
# A package that only this extra brings.
_MARKS = {"server": "asyncpg", "embedded": "httptools"}


def has_extra(extra: str) -> bool:
    """Tell if the packages of `server` or `embedded` are installed. Cheap: imports nothing."""
    return PathFinder.find_spec(_MARKS[extra]) is not None


def install_command(*extras: str) -> str:
    """Return the pip command that installs this distribution with `extras` from where it came from (PEP 610).

    That is a folder or a wheel, or else the package index; run from a source tree, the folder of that.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    wanted = ",".join(extras)
    try:
        origin = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        root = Path(__file__).parents[3]
        return f"pip install {shlex.quote(f'{root}[{wanted}]')}"
    if origin is None:
        return f"pip install {shlex.quote(f'{DISTRIBUTION}[{wanted}]')}"
    found = json.loads(origin)
    if "dir_info" not in found:
        address = found["url"]
        return f"pip install {shlex.quote(f'{DISTRIBUTION}[{wanted}] @ {address}')}"
    editable = "--editable " if found["dir_info"].get("editable") else ""
    folder = unquote(urlsplit(found["url"]).path)
    return f"pip install {editable}{shlex.quote(f'{folder}[{wanted}]')}"
