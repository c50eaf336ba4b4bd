"""Fetches the peers: Centrifugo as a Go module, firebase-admin as a Node package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from bench.figure import report_progress
from bench.processes import ROOT

CENTRIFUGO = "6.9.1"
FIREBASE_ADMIN = "13.10.0"

FOLDER = ROOT / ".venv" / "bench-peers"
_PATIENCE_S = 1_200.0  # a cold build of Centrifugo takes five minutes of CPU


class PeerAbsent(Exception):
    """Raised if a peer cannot be had here; the message says why."""


def centrifugo() -> Path:
    """Return the executable, which is built the first time. Raises PeerAbsent."""
    built = FOLDER / f"centrifugo-{CENTRIFUGO}" / "centrifugo"
    if not built.exists():
        _run("go", "install", f"github.com/centrifugal/centrifugo/v6@v{CENTRIFUGO}", GOBIN=str(built.parent))
    return built


def firebase_admin() -> Path:
    """Return the folder that Node's firebase-admin is installed in. Raises PeerAbsent."""
    folder = FOLDER / f"firebase-admin-{FIREBASE_ADMIN}"
    if shutil.which("node") is None:
        raise PeerAbsent("there is no node on the PATH")
    if not (folder / "node_modules" / "firebase-admin" / "package.json").exists():
        options = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder))
        _run("npm", "install", *options, f"firebase-admin@{FIREBASE_ADMIN}")
    return folder


def _run(tool: str, *arguments: str, **environment: str) -> None:
    if shutil.which(tool) is None:
        raise PeerAbsent(f"there is no {tool} on the PATH")
    FOLDER.mkdir(parents=True, exist_ok=True)
    report_progress(f"peers: {tool} {' '.join(arguments)}")
    try:
        subprocess.run(
            [tool, *arguments],
            cwd=FOLDER,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE_S,
        )
    except subprocess.CalledProcessError as error:
        raise PeerAbsent(f"{tool} failed: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerAbsent(f"{tool} took longer than {_PATIENCE_S:.0f} s") from error
