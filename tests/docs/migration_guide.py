"""Follows the guide of docs/migrate/ as its readers would: files, commands in order, its function and its mirror.

The Realtime Database is a tree in a file, whose writes trigger the guide's function late, shuffled and twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import unquote

from firebase_admin.exceptions import InvalidArgumentError

from syncbeat import SyncbeatClient
from tests.docs.pages import ROOT, blocks_of
from tests.docs.shell_sessions import environment_of

GUIDE = ROOT / "docs" / "migrate"
STUBS = ROOT / "tests" / "docs" / "stubs"
_SAVED = re.compile(r"Save this as\s+`([\w.]+)`(?:(?!\n\n).)*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^( *)```sh\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_LONGEST_S = 600.0


@dataclass
class Reader:
    """Somebody with the five lines of `make run` in a shell, in a folder with the files that the pages say to save."""

    folder: Path
    variables: Mapping[str, str]
    python: str = sys.executable
    ran: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def save_files(self) -> None:
        """Save what the pages say to save."""
        for page in GUIDE.glob("*.md"):
            for name, text in _SAVED.findall(page.read_text(encoding="utf-8")):
                (self.folder / name).write_text(text, encoding="utf-8")

    def run(self, page: str, containing: str, **variables: str) -> str:
        """Run the next block of commands of a page, which has to be the one with these words; return what it prints."""
        blocks = commands_of(page)
        done = sum(one.startswith(f"{page}:") for one in self.ran)
        block = blocks[done]
        assert containing in block, f"{page}: the next commands are\n{block}"
        self.ran.append(f"{page}:{block}")
        path = f"{self.folder}:{Path(self.python).parent}"  # `firebase` is the stand-in that the guide has saved
        environment = environment_of({**self.variables, **variables})
        environment["PATH"] = f"{path}:{environment['PATH']}"
        began = time.monotonic()
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LONGEST_S,
            check=False,
        )
        assert result.returncode == 0, f"{block}\n{result.stdout}"
        self.seconds[f"{page}: {containing}"] = round(time.monotonic() - began, 1)
        return result.stdout

    def left_out(self) -> list[str]:
        """Return the commands of the guide's own pages that were not run."""
        pages = {one.partition(":")[0] for one in self.ran}
        return [block for page in sorted(pages) for block in commands_of(page)[self._count(page) :]]

    def _count(self, page: str) -> int:
        return sum(one.startswith(f"{page}:") for one in self.ran)


def commands_of(page: str) -> list[str]:
    """Return the blocks of commands of a page, also those in lists, which are indented."""
    found = _COMMAND.findall((GUIDE / page).read_text(encoding="utf-8"))
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def program_of(page: str, containing: str, variables: Mapping[str, str]) -> ModuleType:
    """Return the module that a block of Python is, as its reader deploys it."""
    (text,) = [one.text for one in blocks_of(GUIDE / page) if one.language == "python" and containing in one.text]
    module = ModuleType(f"{page}:{containing}")
    before = dict(os.environ)
    os.environ.update(variables)
    sys.path.insert(0, str(STUBS))
    try:
        exec(compile(text, str(GUIDE / page), "exec"), module.__dict__)  # noqa: S102  # the page's own program
    finally:
        sys.path.remove(str(STUBS))
        os.environ.clear()
        os.environ.update(before)
    return module


class RealtimeDatabase:
    """A tree in a file. Writes of phones wait to be told to the function until `deliver`."""

    def __init__(self, path: Path, tree: dict[str, Any]) -> None:
        self.path = path
        self._tree = tree
        self._lock = threading.Lock()
        self._events: list[tuple[str, Any, datetime, str]] = []
        self._save()

    def write(self, path: str, value: Any, *, told: bool = True) -> None:
        """Write as a phone does; None removes. Not `told`: the trigger fails for good."""
        with self._lock:
            self._put(path, value)
            if told:
                self._events.append((path, value, datetime.now(UTC), "app_user"))

    def read(self, path: str) -> Any:
        """Return the value at a path; None: there is none."""
        found: Any = self._tree
        for part in path.split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def reference(self, path: str) -> SimpleNamespace:
        """Return what `firebase_admin.db.reference` does; its writes are of an admin.

        As there, paths are parts of a URL, and are refused with what the URL cannot have.

        Raises:
            ValueError: as `firebase_admin` does.
        """
        if set(path) & set("[].?#$"):
            raise ValueError(f"Invalid path: {path}")
        names = [unquote(segment) for segment in path.split("/")]
        if any(not name or set(name) & set(".$#[]/") for name in names):
            raise InvalidArgumentError(f"Invalid path: {path}")
        at = "/".join(names)

        def put(value: Any) -> None:
            if value is None:
                raise ValueError("Value must not be None.")
            replace(value)

        def replace(value: Any) -> None:
            with self._lock:
                self._put(at, value or None if isinstance(value, dict) else value)
                self._events.append((at, value, datetime.now(UTC), "admin"))

        def transaction(update: Callable[[Any], Any]) -> None:
            put(update(self.read(at)))

        return SimpleNamespace(set=put, delete=lambda: replace(None), transaction=transaction)

    def deliver(self, triggers: Mapping[str, Callable[[Any], None]], seed: int) -> int:
        """Tell the function of the writes that wait: shuffled, and some of them twice; return their number."""
        with self._lock:
            events, self._events = self._events, []
        chance = random.Random(seed)
        events += chance.sample(events, len(events) // 3)
        chance.shuffle(events)
        for path, value, made_at, auth_type in events:
            for pattern, function in triggers.items():
                found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern.removeprefix("/")), path)
                if found is not None:
                    event = SimpleNamespace(
                        time=made_at,
                        auth_type=auth_type,
                        auth_id="alice" if auth_type == "app_user" else None,
                        params=found.groupdict(),
                        data=SimpleNamespace(before=None, after=value),
                    )
                    function(event)
        return len(events)

    def _put(self, path: str, value: Any) -> None:
        *parents, last = path.split("/")
        place = self._tree
        for part in parents:
            place = place.setdefault(part, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
        self._save()

    def _save(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self._tree), encoding="utf-8")
        fresh.replace(self.path)


@contextmanager
def following(mirror: Any, variables: Mapping[str, str], folder: Path, database: RealtimeDatabase) -> Iterator[None]:
    """Run the mirror of a folder in a thread; it goes on where another one in the same folder has ended."""
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()

    async def follow() -> None:
        async with SyncbeatClient(variables["ADDRESS"], token=variables["SERVICE_TOKEN"], tls=False) as client:
            place = mirror.Place(folder / "mirror.db")
            work = asyncio.create_task(mirror.follow(client, database.reference, place))
            await stopped.wait()
            work.cancel()
            await asyncio.wait([work])

    thread = threading.Thread(target=loop.run_until_complete, args=(follow(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()
