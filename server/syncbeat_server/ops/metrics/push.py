"""Metrics of deliveries: attempts, wake-ups, the queue, the providers' breakers."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class _AttemptCollector(Collector):
    """Exposes the attempts. The library's own counter takes seven calls for each (`push_cpu_us_vs_firebase_admin`)."""

    def __init__(self, outcomes: Mapping[str, int]) -> None:
        self._outcomes = outcomes

    def collect(self) -> Iterator[Metric]:
        attempts = CounterMetricFamily(
            "syncbeat_delivery_attempts", "Delivery attempts by what became of them", labels=("outcome",)
        )
        for outcome, count in self._outcomes.items():
            attempts.add_metric((outcome,), count)
        yield attempts


class PushMetrics:
    """Metrics of the delivery worker of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.outcomes: Counts[str] = Counts()
        """Delivery attempts by what became of them."""
        registry.register(_AttemptCollector(self.outcomes))
        self._voided = Counter(
            "syncbeat_delivery_outcomes_voided",
            "Outcomes not recorded, since the lease had run out or the device had acknowledged before",
            registry=registry,
        )
        self._removals_refused = Counter(
            "syncbeat_token_removals_braked",
            "Times that too many registration tokens were called dead to believe it",
            ("app",),
            registry=registry,
        )
        self._woken = Counter(
            "syncbeat_wakeups",
            "Silent wake-ups that the provider took: for the first time, or sent again",
            ("app", "kind"),
            registry=registry,
        )
        self._missed = Counter(
            "syncbeat_wakeups_missed",
            "Wake-ups that nobody answered in time: the first try, one sent again, or all tries of one",
            ("app", "tries"),
            registry=registry,
        )
        self._breaker_open = Gauge(
            "syncbeat_push_breaker_open", "1 while an app's provider is not asked", ("app",), registry=registry
        )
        self._waiting = Gauge(
            "syncbeat_deliveries_waiting", "Deliveries that wait, by state", ("app", "state"), registry=registry
        )
        self._oldest = Gauge(
            "syncbeat_deliveries_oldest_due_seconds",
            "For how long the oldest has been due",
            ("app", "state"),
            registry=registry,
        )
        self._unaccounted = Gauge(
            "syncbeat_deliveries_unaccounted",
            "Accepted deliveries of the last hour that are in no state: always 0",
            registry=registry,
        )

    def attempt_ended(self, outcome: str) -> None:
        """Count a delivery attempt by its outcome."""
        self.outcomes[outcome] += 1

    def outcomes_voided(self, count: int) -> None:
        """Count attempts whose lease had run out, so that their outcome was not recorded."""
        self._voided.inc(count)

    def removal_limit_hit(self, app_id: str) -> None:
        """Count that registration tokens called dead were kept, because there were too many of them to believe it."""
        self._removals_refused.labels(app_id).inc()

    def woken(self, app_id: str, again: bool) -> None:
        """Count a silent wake-up that the provider took; `again` for a resend."""
        self._woken.labels(app_id, "resend" if again else "first").inc()

    def wake_ups_missed(self, app_id: str, tries: str, count: int) -> None:
        """Count unanswered wake-ups: `tries` is "first", "resend", or "all" for those given up."""
        self._missed.labels(app_id, tries).inc(count)

    def breakers(self, open_by_app: Mapping[str, bool]) -> None:
        """Set the providers that are not asked now, of all apps there are."""
        self._breaker_open.clear()
        for app_id, is_open in open_by_app.items():
            self._breaker_open.labels(app_id).set(is_open)

    def queue_counted(self, waiting: Mapping[tuple[str, str], tuple[int, float]], unaccounted: int) -> None:
        """Set the waiting deliveries: count and seconds since the oldest was due, by (app, state)."""
        self._waiting.clear()
        self._oldest.clear()
        for labels, (count, oldest_s) in waiting.items():
            self._waiting.labels(*labels).set(count)
            self._oldest.labels(*labels).set(oldest_s)
        self._unaccounted.set(unaccounted)
