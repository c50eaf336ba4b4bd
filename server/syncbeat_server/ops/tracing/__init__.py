"""Traces: W3C trace contexts, the span of the work at hand, and its export by OTLP (ADRs 176 and 177)."""
