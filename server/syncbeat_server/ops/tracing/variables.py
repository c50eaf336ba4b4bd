"""Decides by OpenTelemetry's standard variables whether a process exports traces.

Names and defaults: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/. All others than these are read by the SDK.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OVER_HTTP = "http/protobuf"
# Whatever else reads the variables without TRACES keeps them.
_WAY_OUT = (
    f"traces go over HTTP, for which collectors listen at port 4318; beside a setting for others set {_PROTOCOLS[0]}="
    f"{_OVER_HTTP} and {_ENDPOINTS[0]}=http://collector:4318/v1/traces"
)
_EXPORTERS = ("otlp", "none")


def exports_traces(environment: Mapping[str, str]) -> bool:
    """Return True if an endpoint is set and nothing turns traces off. An empty variable counts as unset."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return False
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def trace_faults(environment: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the variables of a process that exports traces."""
    if not exports_traces(environment):
        return []
    faults = []
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter not in _EXPORTERS:
        faults.append(f"OTEL_TRACES_EXPORTER: want otlp or none, not {exporter!r}")
    named = next((name for name in _PROTOCOLS if environment.get(name, "").strip()), None)
    protocol = _OVER_HTTP if named is None else environment[named].strip()
    if protocol != _OVER_HTTP:
        faults.append(f"{named}: want {_OVER_HTTP}, not {protocol!r}: {_WAY_OUT}")
    for name in _ENDPOINTS:
        given = environment.get(name, "").strip()
        if given and not given.lower().startswith(("http://", "https://")):
            faults.append(f"{name}: want an http:// or https:// address")
    return faults
