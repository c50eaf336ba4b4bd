"""Replaces links that lead out of docs/ by their text and path, since the site holds the files of docs/ alone.

Called by MkDocs (`hooks` in mkdocs.yml) with each page. The same link works where the repository is browsed. A file
that does not exist is a warning, and so fails a strict build, as any dead link of the site does.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

_log = logging.getLogger("mkdocs.hooks.site_links")

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)\s]*)\)")
_CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Return the text of a page without links out of docs/."""
    root = Path(config.docs_dir).parent

    def shown(link: re.Match[str]) -> str:
        target = link["target"].partition("#")[0]
        path = normalized(PurePosixPath("docs", page.file.src_uri).parent / target)
        if path.parts[:1] == ("docs",):
            return link[0]
        if not (root / path).exists():
            _log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        named = link["text"].strip("`")
        return f"`{path}`" if named in (str(path), path.name) else f"{link['text']} (`{path}`)"

    parts = _CODE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(shown, part) for part in parts)


def normalized(path: PurePosixPath) -> PurePosixPath:
    """Resolve `..` in a path by its text, as a browser does."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)
