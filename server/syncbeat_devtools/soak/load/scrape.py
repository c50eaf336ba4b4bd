"""Reads the memory and CPU of the servers from their metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

_LARGEST = 16 << 20
_TIMEOUT_S = 10.0
_RSS, _CPU = "process_resident_memory_bytes", "process_cpu_seconds_total"


@dataclass
class Scraper:
    """Reads the endpoints in turn. Figures are sums over all of them."""

    urls: Sequence[str]
    failures: int = 0
    _cpu_s: dict[str, float] = field(default_factory=dict)

    async def read(self, session: aiohttp.ClientSession) -> tuple[float | None, float]:
        """Return the resident memory in octets, None if an endpoint did not tell, and the CPU seconds since the last
        reading."""
        rss: float | None = 0.0
        used_s = 0.0
        for url in self.urls:
            try:
                found = sum_samples(await _fetch(session, url), (_RSS, _CPU))
            except (aiohttp.ClientError, TimeoutError, ValueError):
                found = {}
                self.failures += 1
            rss = None if rss is None or _RSS not in found else rss + found[_RSS]
            if _CPU in found:
                before = self._cpu_s.get(url)
                # A process that restarted counts from 0.
                used_s += 0.0 if before is None else found[_CPU] - (before if found[_CPU] >= before else 0.0)
                self._cpu_s[url] = found[_CPU]
        return rss, used_s


def sum_samples(text: str, names: Sequence[str]) -> dict[str, float]:
    """Return the sums of the samples of these metrics in Prometheus' text format; one that is not there is absent.

    Raises:
        ValueError: a sample has no number, or one that is not finite.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition(" ")[0].partition("{")[0]
        if name in names:
            value = line.rpartition("}")[2].split() if "{" in line else line.split()[1:]
            number = float(value[0] if value else "")
            if not math.isfinite(number):
                raise ValueError(f"{name}: {number} is not finite")
            found[name] = found.get(name, 0.0) + number
    return found


async def _fetch(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url, timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as answer:
        answer.raise_for_status()
        body = await answer.content.read(_LARGEST)
        while not answer.content.at_eof() and len(body) < _LARGEST:
            body += await answer.content.read(_LARGEST - len(body))
        return body.decode("utf-8", "replace")
