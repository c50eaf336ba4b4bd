"""Metrics of events: by source and outcome, and how long the oldest one waits for its effects."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

_MAX_SOURCES = 100
_OTHERS = "others"
_GIVEN_UP = "given_up"


class EventMetrics:
    """Metrics of events, as one process sees them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._outcomes = Counter(
            "syncbeat_events",
            "Events that came, by source and outcome; all but the first 100 sources are counted together",
            ("app", "source", "outcome"),
            registry=registry,
        )
        self._retries = Counter(
            "syncbeat_event_retries",
            "Further attempts of FAILED events by outcome; given_up: the deadline leaves no time for another",
            ("app", "source", "outcome"),
            registry=registry,
        )
        self._oldest = Gauge(
            "syncbeat_events_oldest_failed_seconds",
            "For how long the oldest FAILED event that is still retried has been known, in all apps",
            registry=registry,
        )
        self._sources: set[tuple[str, str]] = set()

    def ingested(self, app_id: str, source: str, outcome: str) -> None:
        """Count an event that came, by what became of it."""
        self._outcomes.labels(app_id, self._label(app_id, source), outcome.lower()).inc()

    def retried(self, app_id: str, source: str, outcome: str, *, given_up: bool) -> None:
        """Count another attempt of an event that had FAILED."""
        name, label = self._label(app_id, source), _GIVEN_UP if given_up else outcome.lower()
        self._retries.labels(app_id, name, _GIVEN_UP)  # from 0, so that Prometheus sees the first one as an increase
        self._retries.labels(app_id, name, label).inc()

    def oldest_waiting(self, seconds: float) -> None:
        """Set for how long the oldest FAILED event has waited; 0: there is none."""
        self._oldest.set(seconds)

    def _label(self, app_id: str, source: str) -> str:
        """Return a source as a label. Senders name sources, so that their number is bounded here."""
        if (app_id, source) in self._sources:
            return source
        if len(self._sources) >= _MAX_SOURCES:
            return _OTHERS
        self._sources.add((app_id, source))
        return source
