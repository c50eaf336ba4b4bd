"""The scripts of tools/clients, each of which generates a client as clients/README.md says, compiles it and runs it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "Go": ("go", ("protoc", "grpc-tools")),
    "Java": ("java_lite", ("protoc", "java")),
    "Kotlin": ("kotlin", ("protoc", "java")),
    "TypeScript": ("typescript", ("typescript",)),
    "PHP": ("php", ("protoc",)),
    "Ruby": ("ruby", ("protoc",)),
}
"""The script of each language, and the parts of tools/client_tools.sh that it needs."""
_RUN_S = 900.0


def generate_and_compile(language: str, folder: Path) -> None:
    """Run the script of a language in an empty folder; it fails unless what it compiled runs."""
    script, _ = PARTS[language]
    command = ["sh", str(ROOT / "tools" / "clients" / f"{script}.sh"), str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_RUN_S, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]


def told_by_the_page() -> dict[str, str]:
    """Return what clients/README.md says of each language's tests."""
    page = (ROOT / "clients" / "README.md").read_text(encoding="utf-8")
    return {row[1]: row[2] for row in re.finditer(r"^\| \[(.+?)\]\(.*?\) \| .*? \| (.*?) \|$", page, re.MULTILINE)}
