"""Settings of an app (tenant): its issuers, its push provider, and the freshness its devices are to have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from syncbeat_server.defaults import (
    LONGEST_POLL_S,
    POLL_CAP_IN_TARGETS,
    POLL_FLOOR_S,
    TARGET_STALENESS_S,
    SchedulingPolicy,
    UnlinkedSubjects,
)
from syncbeat_server.ops.settings.event_sources import SourceSelection
from syncbeat_server.ops.settings.issuer import IssuerSettings
from syncbeat_server.ops.settings.tiers import TierSelection
from syncbeat_server.ops.settings.types import (
    OptionalSecret,
    ReadableFile,
    check_base_url,
    check_public_address,
    faults_of,
)


class TemplateText(BaseModel):
    """Text of a notification template in one locale."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    body: str = ""


class AppSettings(IssuerSettings, TierSelection, SourceSelection):
    """Settings of one app.

    `issuers` (those beside the first one), `templates` (name, locale, text), `tiers` and `sources` stand in the apps
    file only.
    Of the three freshness targets at most one may be set; without any, the mean staleness of `TARGET_STALENESS_S` is
    aimed at.
    """

    issuers: tuple[IssuerSettings, ...] = Field(
        default=(), description="More issuers of the app's tokens, beside the first."
    )
    session_issuer: str = Field(
        default="", description="The `iss` claim of the tokens of our own sessions. Empty: syncbeat:<app>."
    )
    fcm_credentials: ReadableFile = Field(
        default=None,
        description="The file of the Firebase service account (JSON), read again when it changes. Without it, and "
        "without WEBHOOK_URL, deliveries are logged only.",
    )
    fcm_base_url: str = Field(
        default="https://fcm.googleapis.com", description="The address of FCM, or of a fake of it on this machine."
    )
    webhook_url: str = Field(
        default="", description="A relay of yours that takes messages as JSON: without FCM, or while FCM is away."
    )
    webhook_token: OptionalSecret = Field(default=None, description="The bearer token that the relay is shown.")
    webhook_private: bool = Field(
        default=False, description="Let the relay be on this machine or in a private network."
    )
    max_per_day: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Messages a day on each device whose user set no maximum. Unset: no maximum."
    )
    templates: dict[str, dict[str, TemplateText]] = Field(
        default_factory=dict,
        description="Texts of notifications: for each template `title` and `body`, for `default` and for each locale.",
    )
    staleness_target_s: Annotated[float, Field(ge=1.0, le=86_400.0)] | None = Field(
        default=None,
        description="The target as the mean age, in seconds, of changes when a device hears of them. "
        f"Unset, with no other target: {TARGET_STALENESS_S:g}.",
    )
    staleness_p95_s: Annotated[float, Field(ge=2.0, le=86_400.0)] | None = Field(
        default=None, description="The target as the age, in seconds, that 95 of 100 changes stay below."
    )
    requests_per_day: Annotated[int, Field(ge=100, le=10**12)] | None = Field(
        default=None, description="The target as the requests a day that all devices of the app may send together."
    )
    poll_floor_s: float = Field(
        default=POLL_FLOOR_S,
        ge=1.0,
        le=3_600.0,
        description="The shortest polling interval, in seconds, whatever the policy and boosts.",
    )
    poll_cap_s: Annotated[float, Field(ge=POLL_FLOOR_S, le=LONGEST_POLL_S)] | None = Field(
        default=None,
        description="The longest polling interval, in seconds, of a device in the foreground that no push reaches. "
        f"Unset: {POLL_CAP_IN_TARGETS:g} times the mean target, 4 times a p95 target, 4 hours with a budget.",
    )
    policy: SchedulingPolicy = Field(
        default=SchedulingPolicy.ADAPTIVE,
        description="The policy that decides polling intervals: adaptive, or a simpler one to compare it with.",
    )

    @property
    def longest_poll_s(self) -> float:
        """Return the longest interval, in seconds, of a device that no push reaches; unset, it follows from the target.

        A budget is to be kept whatever staleness comes of it.
        """
        if self.poll_cap_s is not None:
            return self.poll_cap_s
        if self.requests_per_day is not None:
            return LONGEST_POLL_S
        by_mean = POLL_CAP_IN_TARGETS * (self.staleness_target_s or TARGET_STALENESS_S)
        return min(LONGEST_POLL_S, max(self.poll_floor_s, by_mean, 4.0 * (self.staleness_p95_s or 0.0)))

    def faults(self) -> Iterator[str]:
        """Yield the faults of targets and of the push provider, beside those of the issuer."""
        yield from super().faults()
        first = UnlinkedSubjects.OWN if self.unlinked_subjects is None else self.unlinked_subjects
        if [first, *(one.unlinked_subjects for one in self.issuers)].count(UnlinkedSubjects.OWN) > 1:
            yield (
                "UNLINKED_SUBJECTS: of several issuers one at most may be own, which the first is unless set: "
                "two would both be the user of an id that neither is linked to"
            )
        yield from self._target_faults()
        yield from faults_of(check_base_url, "FCM_BASE_URL", self.fcm_base_url)
        if self.webhook_url:
            fault = next(faults_of(check_base_url, "WEBHOOK_URL", self.webhook_url), None)
            if fault is not None:
                yield fault
            elif not self.webhook_private:
                yield from faults_of(check_public_address, "WEBHOOK_URL", self.webhook_url, "WEBHOOK_PRIVATE=true")

    def _target_faults(self) -> Iterator[str]:
        if sum(one is not None for one in (self.staleness_target_s, self.staleness_p95_s, self.requests_per_day)) > 1:
            yield "STALENESS_TARGET_S, STALENESS_P95_S, REQUESTS_PER_DAY: set one, since each decides the others"
            return
        if self.longest_poll_s < self.poll_floor_s:
            yield "POLL_CAP_S: at least POLL_FLOOR_S"
        # Polling at the floor for ever gives half of it as the mean, and 0.95 of it as the p95.
        by_mean = self.staleness_p95_s is None and self.requests_per_day is None
        if by_mean and (self.staleness_target_s or TARGET_STALENESS_S) < self.poll_floor_s / 2:
            yield (
                "STALENESS_TARGET_S: at least half of POLL_FLOOR_S, or no polling meets it "
                f"({TARGET_STALENESS_S:g} s unless it is set)"
            )
        if self.staleness_p95_s is not None and self.staleness_p95_s < self.poll_floor_s:
            yield "STALENESS_P95_S: at least POLL_FLOOR_S, or no polling meets it"


def session_issuer(app_id: str, app: AppSettings) -> str:
    """Return the `iss` claim of the tokens of our own sessions of an app."""
    return app.session_issuer or f"syncbeat:{app_id}"


def issuer_faults(apps: Mapping[str, AppSettings]) -> Iterator[str]:
    """Yield the issuers that stand twice, with their apps: a token would not tell whose it is."""
    owner = dict[str, str]()
    for app_id, app in apps.items():
        for name in (app.jwt_issuer, session_issuer(app_id, app), *(issuer.jwt_issuer for issuer in app.issuers)):
            if name in owner:
                both = f"{name} is of the app {owner[name]} and of {app_id}: give one another jwt_issuer"
                yield f"JWT_ISSUER, SESSION_ISSUER: each issuer belongs to one app and stands once; {both}"
            owner.setdefault(name, app_id)
