"""Settings of a fake FCM."""

from __future__ import annotations

from dataclasses import dataclass

from syncbeat_server.ops.hosts import is_this_machine


@dataclass(frozen=True)
class FakeFcmSettings:
    """Settings of one fake FCM.

    Attributes:
        host: the address to listen on. Anything but a loopback address needs `allow_remote`.
        port: the TCP port; 0 picks a free one.
        project_id: the only project that sends are accepted for.
        tls: use TLS, with a certificate of a CA made at start.
        http2: offer HTTP/2: by ALPN with TLS, by prior knowledge (h2c) without.
        token_life_s: lifetime of issued access tokens, in seconds.
        max_records: number of accepted messages that are kept, with their devices; counters are not bounded.
        max_bytes: octets of their bodies in total.
        latency_ms: delay of every response to a send, in milliseconds.
        messages_per_minute: quota of sends, above which the response is 429; None: no quota.
        allow_remote: permit a host that other machines can reach.
    """

    host: str = "127.0.0.1"
    port: int = 0
    project_id: str = "demo-project"
    tls: bool = False
    http2: bool = True
    token_life_s: int = 3599
    max_records: int = 100_000
    max_bytes: int = 256 << 20
    latency_ms: int = 0
    messages_per_minute: int | None = None
    allow_remote: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: a value is out of range, or the host is not loopback and `allow_remote` is off.
        """
        if not self.allow_remote and not is_this_machine(self.host):
            raise ValueError(f"host: other machines can reach {self.host}; set allow_remote if that is meant")
        if not self.project_id or "/" in self.project_id:
            raise ValueError("project_id: want a project's name, without a slash")
        for name, least in (("token_life_s", 0), ("latency_ms", 0), ("max_records", 1), ("messages_per_minute", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: want {least} or more")
