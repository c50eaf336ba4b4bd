"""Tests which tier a caller has, and how tiers are read from the settings and from tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from syncbeat_server.app.ratelimit.tiers import TierPolicies, tier_policy
from syncbeat_server.auth.tokens.claims import claimed_tier
from syncbeat_server.ops.settings.tiers import ClassSettings, TierSettings
from syncbeat_server.ratelimit.model import (
    UNLIMITED,
    LimitSubject,
    MethodClass,
    Rate,
    Tier,
    TierLimit,
    TierPolicy,
    TierSource,
    UserTier,
)
from syncbeat_server.ratelimit.policy.tiers import describe_tier, resolve_tier
from tests.app.test_apps_file import APPS
from tests.app.test_apps_reload import running
from tests.ops.test_server_settings import load, refused
from tests.support.file_damage import put

pytestmark = pytest.mark.unit

FREE, PRO = Tier("free", ()), Tier("pro", ())
TIERS = {"free": FREE, "pro": PRO}
BOTH = TierPolicy(TIERS, "free", "plan")
OF_SERVICES = TierPolicy({**TIERS, "service": Tier("service", ())}, "free", "plan")
TIERED = (
    APPS
    + """
default_tier = "free"
tier_claim = "app_metadata.plan"
quota_time_zone = "Europe/Vienna"
[apps.shop.tiers.free.principal]
hint = { per_second = 0.5, burst = 10, monthly_quota = 100000 }
send = { per_second = 2.5 }
[apps.shop.tiers.free.app.bytes]
monthly_quota = 1000000
[apps.shop.tiers.none.principal.other]
per_second = 0
"""
)


@pytest.mark.parametrize(
    ("policy", "stored", "claimed", "tier"),
    [
        (BOTH, "pro", "free", PRO),
        (BOTH, "", "pro", PRO),
        (BOTH, "", "", FREE),
        (BOTH, "gone", "pro", PRO),
        (BOTH, "gone", "unheard of", FREE),
        (TierPolicy(TIERS, None, "plan"), "", "", None),
        (TierPolicy(TIERS, None, "plan"), "", "unheard of", None),
        (TierPolicy(TIERS, "free", None), "", "pro", FREE),
        (UNLIMITED, "pro", "pro", None),
        (OF_SERVICES, "service", "service", FREE),
    ],
)
def test_tier_is_the_granted_one_then_the_claimed_then_the_default(
    policy: TierPolicy, stored: str, claimed: str, tier: Tier | None
) -> None:
    assert resolve_tier(policy, stored, claimed) is tier


@pytest.mark.parametrize(
    ("policy", "stored", "described"),
    [
        (BOTH, "pro", UserTier("pro", TierSource.SET, "pro")),
        (BOTH, "", UserTier("free", TierSource.CLAIM, "")),
        (BOTH, "gone", UserTier("free", TierSource.CLAIM, "gone")),
        (TierPolicy(TIERS, "free", None), "gone", UserTier("free", TierSource.DEFAULT, "gone")),
        (UNLIMITED, "", UserTier("", TierSource.DEFAULT, "")),
    ],
)
def test_tier_is_described_with_its_source(policy: TierPolicy, stored: str, described: UserTier) -> None:
    assert describe_tier(policy, stored) == described


@pytest.mark.parametrize(
    ("claim", "claims", "tier"),
    [
        ("plan", {"plan": "pro"}, "pro"),
        ("plan", {}, ""),
        ("", {"": "pro"}, ""),
        ("app_metadata.plan", {"app_metadata": {"plan": "pro"}}, "pro"),
        ("app_metadata.plan", {"app_metadata": "pro"}, ""),
        ("app_metadata.plan", {"app_metadata": {}}, ""),
        ("https://shop.example/plan", {"https://shop.example/plan": "pro"}, "pro"),
        ("a.b", {"a.b": "one", "a": {"b": "other"}}, "one"),
        ("plan", {"plan": ["pro"]}, ""),
        ("plan", {"plan": True}, ""),
        ("plan", {"plan": "x" * 65}, ""),
    ],
)
def test_claimed_tier_is_read_by_name_or_path(claim: str, claims: Mapping[str, Any], tier: str) -> None:
    assert claimed_tier(claim, claims) == tier


def test_tier_policy_is_read_from_the_apps_file(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text(TIERED)
    apps = load(APPS_FILE=str(path)).all_apps()
    policy = tier_policy(apps["shop"])
    free = Tier(
        "free",
        (
            TierLimit(LimitSubject.APP, MethodClass.BYTES, None, 1_000_000),
            TierLimit(LimitSubject.PRINCIPAL, MethodClass.HINT, Rate(0.5, 10), 100_000),
            TierLimit(LimitSubject.PRINCIPAL, MethodClass.SEND, Rate(2.5, 3), None),
        ),
    )
    none = Tier("none", (TierLimit(LimitSubject.PRINCIPAL, MethodClass.OTHER, Rate(0.0, 1), None),))
    assert policy == TierPolicy({"free": free, "none": none}, "free", "app_metadata.plan", "Europe/Vienna")
    assert tier_policy(apps["default"]) == UNLIMITED


def test_tier_settings_name_every_subject_and_class() -> None:
    assert list(TierSettings.model_fields) == list(LimitSubject)
    assert list(ClassSettings.model_fields) == list(MethodClass)


def test_tiers_of_the_default_app_stand_in_the_apps_file(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text("[apps.default.tiers.free.principal.hint]\nper_second = 1\n")
    app = load(APPS_FILE=str(path), DEFAULT_TIER="free", TIER_CLAIM="plan").all_apps()["default"]
    assert tier_policy(app).default_tier == "free"
    assert "DEFAULT_TIER: no such tier; the tiers of the app's users are: free" in refused(
        APPS_FILE=str(path), DEFAULT_TIER="gold"
    )
    assert "no such tier; the tiers of the app's users are: none" in refused(DEFAULT_TIER="gold")


@pytest.mark.parametrize(
    ("wrong", "right", "fault"),
    [
        ('"free"', '"gold"', "apps.shop: DEFAULT_TIER: no such tier; the tiers of the app's users are: free, none"),
        ("0.5", "-1", "line 10: apps.shop.tiers.free.principal.hint.per_second: want number, 0 to 1000000000"),
        ("0.5", "1e-9", "per_second: want 0, or at least 0.000001"),
        ("0.5", "nan", "want number, 0 to"),
        ("0.5", "true", "hint.per_second: want number, 0 to"),
        ("0.5", '"5"', "hint.per_second: want number, 0 to"),
        ("burst = 10", "burst = true", "hint.burst: want whole number, 1 to"),
        ("app_metadata.plan", "app_metadata..plan", "line 7: apps.shop: TIER_CLAIM: want names of claims"),
        (
            'default_tier = "free"',
            'default_tier = "free"\njwt_leeway_s = true',
            "jwt_leeway_s: true and false are no value",
        ),
        ("burst = 10", "burst = 0", "hint.burst: want whole number, 1 to"),
        ("100000 }", '"many" }', "hint.monthly_quota: want whole number, 0 to"),
        ("per_second = 2.5", "burst = 2", "apps.shop.tiers.free.principal.send: want per_second, monthly_quota, or"),
        ("monthly_quota = 1000000", "monthly_quota = 1\nburst = 2", "burst: needs per_second beside it"),
        (".free.principal]", ".free.pincipal]", "tiers.free.pincipal: want app, principal, device, scope"),
        ("send =", "snd =", "principal.snd: want hint, publish, send, event, stream, other, bytes"),
        ("burst =", "brst =", "hint.brst: want per_second, burst, monthly_quota"),
        (".free.app.bytes", ".free.device.bytes", "device: monthly quotas are counted of `app` and `principal` only"),
        (".tiers.none.", '.tiers."no ne".', "TIERS: a tier's name is 1 to 64 of"),
        ("app_metadata", "user_metadata", "line 7: apps.shop: TIER_CLAIM: users write user_metadata themselves"),
        ("Europe/Vienna", "Europe/Vien", "line 8: apps.shop: QUOTA_TIME_ZONE: want a time zone of the IANA database"),
        ("Europe/Vienna", "../UTC", "QUOTA_TIME_ZONE: want a time zone of the IANA database"),
    ],
)
def test_tiers_fault_names_place_and_remedy(tmp_path: Path, wrong: str, right: str, fault: str) -> None:
    path = tmp_path / "apps.toml"
    assert wrong in TIERED
    path.write_text(TIERED.replace(wrong, right, 1))
    assert fault in refused(APPS_FILE=str(path))


async def test_tiers_are_read_anew_with_the_apps_file(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text(TIERED)
    async with running(path) as one:
        policies = TierPolicies(one.apps)
        assert policies.of("shop").default_tier == "free"
        put(path, TIERED.replace('default_tier = "free"', 'default_tier = "none"'))
        await one.look(2)
        assert policies.of("shop").default_tier == "none"
        put(path, TIERED.replace('default_tier = "free"', 'default_tier = "gold"'))
        await one.look(2)
        assert policies.of("shop").default_tier == "none"
        assert policies.of("unheard of") is UNLIMITED
