"""Writes made-up exports of the Realtime Database, of any size, as a stream; and the map that they are imported by."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import IO

from tests.support.rtdb_trees import push_id

SOURCE_TIME = "2026-01-31T12:00:00Z"
MAP = """version = 1

[[value]]
path = "chats/{chat}/messages/{message}"
scope = "chat:{chat}"
key = "m:{message}"
source_time = { push_id = "message" }

[[value]]
path = "chats/{chat}/title"
scope = "chat:{chat}"
key = "title"

[[member]]
path = "chats/{chat}/members/{user}"
scope = "chat:{chat}"
user = "{user}"
roles = { true = "WRITER", viewer = "READER" }
role = "{.}"

[[value]]
path = "profiles/{user}"
scope = "user:{user}"
key = "profile"

[[device]]
path = "tokens/{user}/{token}"
user = "{user}"
token = "{token}"
platform = "{.}"

[[preferences]]
path = "settings/{user}"
user = "{user}"
max_per_day = "max"
muted_types = "muted"

[[ignore]]
path = "presence"
"""
_MESSAGES_OF_CHAT = 200
_START_MS = 1_700_000_000_000
_WORDS = ("so", "then", "we", "met", "at", "the", "old", "bridge", "and", "saw", "what", "rivers", "bring", "down")


def write_export(path: Path, octets: int, seed: int = 1) -> int:
    """Write an export of about so many octets, nine tenths of them messages; return the number of its values."""
    dice = random.Random(seed)
    chats = max(1, octets // 42_000)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"chats":{')
        for number in range(chats):
            file.write("," * bool(number))
            _write_chat(file, number, dice)
        file.write("},")
        _write_users(file, chats, dice)
        file.write("}")
    return chats * (_MESSAGES_OF_CHAT + 1) + chats


def _write_chat(file: IO[str], number: int, dice: random.Random) -> None:
    members = {f"u{(number + step) % 100_000}": True if step else "viewer" for step in range(3)}
    file.write(f'"c{number}":{{"title":"Chat {number} \\u2603","members":{json.dumps(members)},"messages":{{')
    for message in range(_MESSAGES_OF_CHAT):
        key = push_id(_START_MS + number * 1_000_000 + message * 1_000, f"{message:012d}")
        value = {
            "text": " ".join(dice.choices(_WORDS, k=dice.randint(3, 30))),
            "from": f"u{number}",
            "at": _START_MS + message,
            "stars": [1, None, 2.5] if message % 16 == 0 else None,
            "place": {"lat": round(dice.uniform(-90, 90), 6), "lon": round(dice.uniform(-180, 180), 6)},
            "read": {},
        }
        file.write("," * bool(message) + f'"{key}":{json.dumps(value, separators=(",", ":"))}')
    file.write("}}")


def _write_users(file: IO[str], users: int, dice: random.Random) -> None:
    for name, value in (
        ("profiles", lambda n: {"name": f"User {n}", "tags": ["a", "b"]}),
        ("tokens", lambda n: {f"token-{n}": dice.choice(["ios", "android"])}),
        ("settings", lambda n: {"max": n % 50, "muted": ["ads"]}),
    ):
        file.write(f'"{name}":{{')
        for number in range(users):
            file.write("," * bool(number) + f'"u{number}":{json.dumps(value(number))}')
        file.write("},")
    file.write('"presence":{"u1":true},"unknown":{"x":1}')
