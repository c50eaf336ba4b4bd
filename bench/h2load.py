"""Load by h2load, which speaks HTTP/2 in C but not gRPC, so the size of the responses is checked here."""

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
    """The result of a load run."""

    requests: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Return requests per second."""
        return self.requests / self.seconds


def is_installed() -> bool:
    """Tell if h2load is on the PATH."""
    return shutil.which("h2load") is not None


def frame_message(message: bytes) -> bytes:
    """Return a message in gRPC's framing: uncompressed, with its length in front."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def run(url: str, message: bytes, headers: Sequence[tuple[str, str]], seconds: float, answer_bytes: int) -> Load:
    """Send `message` repeatedly over 16 connections x 4 streams, from one thread.

    A failed call has no body, so the total size of the bodies shows if all calls succeeded.

    Raises:
        RuntimeError: a request failed, or the responses are too short for all to be OK.
    """
    load, mean = _run(url, frame_message(message), headers, seconds, "-m", str(STREAMS))
    # Timestamps make a response a few bytes shorter or longer.
    if not abs(mean - answer_bytes - 5) <= 8:
        raise RuntimeError(f"answers of {mean:.1f} bytes where {answer_bytes + 5} were expected: some calls failed")
    return load


def run_http2(url: str, body: bytes, headers: Sequence[tuple[str, str]], seconds: float) -> Load:
    """POST `body` repeatedly over 4 HTTP/2 connections.

    Raises:
        RuntimeError: a status is not 2xx.
    """
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
    return parse_output(output)


def parse_output(output: str) -> tuple[Load, float]:
    """Return the load of h2load's output, and the mean size of the bodies."""
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
