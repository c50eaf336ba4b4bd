"""Names what the delivery worker counts, so that it depends on no metrics library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class WorkerMetrics(Protocol):
    """Receives the counts of a delivery worker."""

    def attempt_ended(self, outcome: str) -> None:
        """Count an attempt by its outcome: the reason, or the verdict where there is none."""
        ...

    def outcomes_voided(self, count: int) -> None:
        """Count attempts whose lease had run out, so that their outcome was not recorded."""
        ...

    def removal_limit_hit(self, app_id: str) -> None:
        """Count a batch in which registration tokens called dead were kept, because there were too many of them."""
        ...

    def woken(self, app_id: str, again: bool) -> None:
        """Count a silent wake-up that the provider took; `again` for a resend."""
        ...

    def wake_ups_missed(self, app_id: str, tries: str, count: int) -> None:
        """Count unanswered tries: `tries` is "first", "resend", or "all" for wake-ups that were given up."""
        ...

    def queue_counted(self, waiting: Mapping[tuple[str, str], tuple[int, float]], unaccounted: int) -> None:
        """Set the gauges of the queue: by (app, state) count and age in seconds of the oldest, and missing ones."""
        ...

    def breakers(self, open_by_app: Mapping[str, bool]) -> None:
        """Set which apps' circuit breakers are not closed."""
        ...


class NoMetrics:
    """Discards every count: for tests and tools that run a worker by itself."""

    def attempt_ended(self, outcome: str) -> None:
        """Discard it."""

    def outcomes_voided(self, count: int) -> None:
        """Discard it."""

    def removal_limit_hit(self, app_id: str) -> None:
        """Discard it."""

    def woken(self, app_id: str, again: bool) -> None:
        """Discard it."""

    def wake_ups_missed(self, app_id: str, tries: str, count: int) -> None:
        """Discard it."""

    def queue_counted(self, waiting: Mapping[tuple[str, str], tuple[int, float]], unaccounted: int) -> None:
        """Discard it."""

    def breakers(self, open_by_app: Mapping[str, bool]) -> None:
        """Discard it."""
