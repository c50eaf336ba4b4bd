"""Load by h2load, which speaks HTTP/2 in C and knows nothing of gRPC: the bytes of the answers are checked here."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

CONNECTIONS = 16
STREAMS = 4


@dataclass(frozen=True)
class Load:
    """The result of one run of load."""

    requests: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def installed() -> bool:
    """Tell if h2load is installed."""
    return shutil.which("h2load") is not None


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length before it."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def run(url: str, message: bytes, headers: Sequence[tuple[str, str]], seconds: float, answer_bytes: int) -> Load:
    """Send `message` again and again over 16 connections x 4 streams, from one thread.

    An answer other than OK has no body: so the bytes of the bodies tell whether all were good.

    Raises:
        RuntimeError: a request failed, or the answers are too short to be all OK.
    """
    load, mean = _run(url, framed(message), headers, seconds, "-m", str(STREAMS))
    # Times in an answer make it a few bytes shorter or longer.
    if not abs(mean - answer_bytes - 5) <= 8:
        raise RuntimeError(f"answers of {mean:.1f} bytes where {answer_bytes + 5} were expected: some calls failed")
    return load


def run_http2(url: str, body: bytes, headers: Sequence[tuple[str, str]], seconds: float) -> Load:
    """POST `body` again and again over 4 HTTP/2 connections. Raises RuntimeError when a status is not 2xx."""
    return _run(url, body, headers, seconds, "-c", "4", "-m", "50")[0]


def _run(
    url: str, body: bytes, headers: Sequence[tuple[str, str]], seconds: float, *options: str
) -> tuple[Load, float]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = [
            *("h2load", "-t", "1", "-c", str(CONNECTIONS), "-D", f"{round(seconds * 1000)}ms", "-d", file.name),
            *options,
            *(part for name, value in headers for part in ("-H", f"{name}: {value}")),
            url,
        ]
        output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
    return read(output)


def read(output: str) -> tuple[Load, float]:
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (succeeded|failed|errored|timeout)", output)}
    finished = re.search(r"finished in ([\d.]+)(ms|s)", output)
    body = re.search(r"\((\d+)\) data", output)
    if finished is None or body is None or not counts.get("succeeded"):
        raise RuntimeError(f"h2load did not get through: {output[-1000:]}")
    if counts["failed"] or counts["errored"] or counts["timeout"]:
        raise RuntimeError(f"h2load met failures: {counts}")
    mean = int(body.group(1)) / counts["succeeded"]
    seconds = float(finished.group(1)) / (1000 if finished.group(2) == "ms" else 1)
    return Load(counts["succeeded"], seconds), mean
