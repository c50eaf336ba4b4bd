"""Settings of an app's tiers: how much each user, service, device and scope may do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, model_validator

from syncbeat_server.defaults import SERVICE_TIER
from syncbeat_server.ops.settings.issuer import claim_faults
from syncbeat_server.ops.settings.types import NAME, CheckedTogether

MAX_TIERS = 100
_QUOTA_SUBJECTS = ("app", "principal")
_MAX_CLAIM = 128
_LEAST_RATE = 1e-6  # so that intervals between two calls stay within what clocks count exactly


class LimitSettings(BaseModel):
    """Settings of one limit: a rate, a monthly quota, or both."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    per_second: Annotated[float, Field(ge=0.0, le=1e9)] | None = Field(
        default=None, description="The sustained rate a second (octets for `bytes`); 0 refuses all. Unset: no rate."
    )
    burst: Annotated[int, Field(ge=1, le=10**10)] | None = Field(
        default=None, description="The most at once after a pause. Unset: what comes in a second, 1 at least."
    )
    monthly_quota: Annotated[int, Field(ge=0, le=10**15)] | None = Field(
        default=None,
        description="The most in a month of the app's QUOTA_TIME_ZONE, of `app` and `principal`; 0 refuses all. "
        "Unset: no quota.",
    )

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if self.per_second is None and self.monthly_quota is None:
            raise ValueError("want per_second, monthly_quota, or both")
        if self.per_second and self.per_second < _LEAST_RATE:
            raise ValueError(f"per_second: want 0, or at least {_LEAST_RATE:f}, which is one in eleven days")
        if self.burst is not None and self.per_second is None:
            raise ValueError("burst: needs per_second beside it")
        return self


class ClassSettings(BaseModel):
    """Limits of one kind of subject, by the class of the RPC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hint: LimitSettings | None = Field(default=None, description="Limits GetHint and ReportActivity.")
    publish: LimitSettings | None = Field(default=None, description="Limits the publishing of changes.")
    send: LimitSettings | None = Field(default=None, description="Limits the sending of notifications.")
    event: LimitSettings | None = Field(default=None, description="Limits the ingestion of events.")
    stream: LimitSettings | None = Field(default=None, description="Limits the opening of streams.")
    other: LimitSettings | None = Field(default=None, description="Limits all other RPCs.")
    bytes: LimitSettings | None = Field(default=None, description="Limits the octets of requests.")


class TierSettings(BaseModel):
    """Limits of one tier, by what they are counted by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: ClassSettings = Field(default=ClassSettings(), description="Limits all callers of the app together.")
    principal: ClassSettings = Field(default=ClassSettings(), description="Limits one user, or one service.")
    device: ClassSettings = Field(default=ClassSettings(), description="Limits one device.")
    scope: ClassSettings = Field(default=ClassSettings(), description="Limits one scope.")

    @model_validator(mode="after")
    def _check_quotas(self) -> Self:
        for subject in set(type(self).model_fields) - set(_QUOTA_SUBJECTS):
            for _, limit in getattr(self, subject):
                if limit is not None and limit.monthly_quota is not None:
                    raise ValueError(f"{subject}: monthly quotas are counted of `app` and `principal` only")
        return self


class TierSelection(CheckedTogether):
    """Settings of the tiers that an app has, and who gets which."""

    tiers: dict[str, TierSettings] = Field(
        default_factory=dict,
        max_length=MAX_TIERS,
        description="Tiers by name: tables `tiers.NAME.SUBJECT.CLASS` of per_second, burst and monthly_quota. The tier "
        f"`{SERVICE_TIER}` is that of the app's services.",
    )
    default_tier: str = Field(
        default="", description="The tier of users who have none by SetUserTier or TIER_CLAIM. Empty: no limits."
    )
    tier_claim: str = Field(
        default="",
        max_length=_MAX_CLAIM,
        description="The claim of access tokens that names a user's tier, such as plan or app_metadata.plan. "
        "Empty: none.",
    )
    quota_time_zone: str = Field(
        default="UTC", description="The IANA time zone in which the months of monthly quotas begin."
    )

    def faults(self) -> Iterator[str]:
        """Yield the faults of the tiers, and of what chooses among them."""
        yield from super().faults()
        if not all(re.fullmatch(NAME, name) for name in self.tiers):
            yield "TIERS: a tier's name is 1 to 64 of A-Z a-z 0-9 _ . -"
        known = sorted(set(self.tiers) - {SERVICE_TIER})
        if self.default_tier and self.default_tier not in known:
            tables = "none, [apps.NAME.tiers.TIER] tables of the apps file"
            yield f"DEFAULT_TIER: no such tier; the tiers of the app's users are: {', '.join(known) or tables}"
        if self.tier_claim:
            yield from claim_faults("TIER_CLAIM", self.tier_claim, "app_metadata.plan")
        if not _is_zone(self.quota_time_zone):
            yield "QUOTA_TIME_ZONE: want a time zone of the IANA database, such as Europe/Vienna"


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the last two: a path
        return False
    return True


def expected_keys(depth: int) -> list[str]:
    """Return the keys of the table at `depth` of the path `tiers.NAME.SUBJECT.CLASS.LIMIT`."""
    models: dict[int, type[BaseModel]] = {3: TierSettings, 4: ClassSettings, 5: LimitSettings}
    return list(models[depth].model_fields)
