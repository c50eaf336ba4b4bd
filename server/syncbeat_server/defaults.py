"""Defines the defaults and choices that settings and features share, so that each is stated once.

Settings (`ops/settings`) stand below the features and cannot import them; pure policies may import no settings. Both
import this module, which imports nothing of the service.
"""

from __future__ import annotations

from enum import StrEnum

DEFAULT_APP = "default"
"""The app that the environment itself describes, and that a call acts for when it names none."""

LISTEN = "0.0.0.0:50051"
"""The address that serves RPCs, unless the settings name another."""

TARGET_STALENESS_S = 15.0
"""The mean staleness, in seconds, that an app is to have when its settings name no target."""
POLL_FLOOR_S = 5.0
"""The shortest polling interval, in seconds: half of it is the least mean staleness that polling can give."""
POLL_CAP_IN_TARGETS = 5.0
"""The longest polling interval of a device that no push reaches, in mean staleness targets.

Shorter caps cost more requests than they spare staleness: docs/polling-analysis.md.
"""
LONGEST_POLL_S = 4 * 3_600.0
"""The longest polling interval, in seconds, whatever the target and however well pushes arrive."""


class SchedulingPolicy(StrEnum):
    """Names the policies that can decide an app's polling intervals: our own, and simpler ones to compare it with."""

    ADAPTIVE = "adaptive"
    SQRT_EWMA = "sqrt-ewma"
    TIER_TABLE = "tier-table"
    FIXED = "fixed-30s"


class UnlinkedSubjects(StrEnum):
    """Names the answers to whom a token's subject is that no identity links to a user.

    OWN: the user of that id, unless another issuer's identity names that user. One issuer of an app at most.
    NEW: a new user of that id; nobody, if a user of that id is known.
    SHARED: the user of that id, whoever else may be: identities are neither read nor made.
    """

    OWN = "own"
    NEW = "new"
    SHARED = "shared"


class SignatureScheme(StrEnum):
    """Names the ways in which senders of webhooks sign them."""

    STANDARD_WEBHOOKS = "standard-webhooks"
    SVIX = "svix"
    STRIPE = "stripe"
    GITHUB = "github"


class TimeFormat(StrEnum):
    """Names the forms in which a webhook says when something happened."""

    ISO = "iso"
    UNIX_SECONDS = "unix-seconds"
    UNIX_MILLISECONDS = "unix-milliseconds"


WEBHOOK_TOLERANCE_S = 300.0
"""The difference, in seconds, between a webhook's signed time and our clock: what all three schemes with one advise."""
WEBHOOK_SECRETS = 4
"""The most secrets of a source at once: the one in use, its successor, and two of a rotation that was broken off."""
MOST_AHEAD_S = 300.0
"""The most, in seconds, that an event may have occurred ahead of the service's clock: one of the year 3000 would make
all later ones of its order stale."""
GITHUB_MAX_AGE_S = 3 * 86_400.0
"""The age, in seconds, of the oldest delivery that GitHub sends again."""
SENDER_REPEATS_S = 3 * 86_400.0
"""The seconds for which a sender of webhooks repeats what was not answered 2xx: Stripe's, the longest known."""

DELIVERY_LEASE_S = 30.0
"""The life of a claimed delivery's lease, in seconds, after which another worker may claim it."""
DELIVERY_POLL_S = 1.0
"""The interval, in seconds, at which a worker looks for due deliveries without having been woken."""
DELIVERY_FIRST_RETRY_S = 10.0
"""The least wait, in seconds, before a failed attempt is repeated: what FCM asks of its callers."""
DELIVERY_GIVE_UP_S = 3_600.0
"""The time, in seconds, from the first attempt to the last one."""
DELIVERY_TIMEOUT_S = 15.0
"""The time, in seconds, that one attempt may take: FCM's internal calls take up to 10 s, so less makes duplicates."""
STREAM_GRACE_S = 5.0
"""The time, in seconds, that a device with a live stream has to show a change by itself before it is pushed to."""
RESEND_DELAYS_S = (15.0, 30.0, 60.0, 120.0)
"""The waits, in seconds, for an answer to a silent wake-up before it is sent again, one for each resend."""

VALUE_OCTETS = 1 << 20
"""The largest value of a change in octets: as a request brings it, and as text and in PostgreSQL's own form."""

DEVICES_PER_USER = 100
"""The most devices that one user may have registered."""

PROCESSES_EXPECTED = 8
"""Processes of a deployment: what each goes by while Redis, which counts them, was never reached."""

STREAMS_PER_USER = 50
"""The most WatchHints streams that one user may have open on a process."""
STREAMS_PER_DEVICE = 10
"""The most of them that one device may have: a phone on a bad line leaves dead ones behind for up to 80 s each."""

ACCESS_TOKEN_S = 3_600.0
"""The life of a session's access token, in seconds."""
SESSION_IDLE_S = 30 * 86_400.0
"""The time, in seconds, after which a session that is not refreshed ends."""
SESSION_MAX_S = 180 * 86_400.0
"""The time, in seconds, after which a session ends however often it is refreshed."""
SESSION_GRACE_S = 30.0
"""The time, in seconds, for which the previous refresh token stays good whatever else is known."""
SERVICE_TIER = "service"
"""The tier whose limits hold for an app's services, if it has one: no user is given it."""
JWT_LEEWAY_S = 30.0
"""The difference, in seconds, between an issuer's clock and ours that a token's times are read with; also the most."""
