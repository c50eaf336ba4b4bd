"""Signatures of webhooks: what the vendors' libraries sign is taken, and nothing else is."""

from __future__ import annotations

import base64
import logging
import math
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from syncbeat_server.defaults import WEBHOOK_SECRETS, SignatureScheme
from syncbeat_server.http.webhooks.model import Delivery, SignatureFault, WebhookOutcome
from syncbeat_server.http.webhooks.schemes import parse_key, refuse, verify
from tests.support.fake_clock import START
from tests.support.webhooks import Desk, Signed, body_of, in_lists, made_secret, sign, source_of

pytestmark = pytest.mark.unit

BODY = body_of(id="evt_1", type="user.created", subject="ann", at=int(START.timestamp()), note="Grüße")
TIMED = [SignatureScheme.STANDARD_WEBHOOKS, SignatureScheme.SVIX, SignatureScheme.STRIPE]
schemes = pytest.mark.parametrize("scheme", SignatureScheme)


def verified(
    scheme: SignatureScheme, headers: Signed, *secrets: str, body: bytes = BODY, now: datetime = START
) -> Delivery | SignatureFault:
    keys = [parse_key(scheme, secret) for secret in secrets]
    return verify(scheme, keys, in_lists(headers), body, now.timestamp(), 300.0)


@schemes
def test_signature_of_vendors_library_is_accepted(scheme: SignatureScheme) -> None:
    secret = made_secret(scheme)
    found = verified(scheme, sign(scheme, secret, BODY, START), secret)
    assert isinstance(found, Delivery)
    assert found.time == (None if scheme is SignatureScheme.GITHUB else int(START.timestamp()))
    signs_id = scheme in (SignatureScheme.STANDARD_WEBHOOKS, SignatureScheme.SVIX)
    assert found.id == ("msg_1" if signs_id else found.digest)


@schemes
def test_rotated_secrets_are_all_accepted(scheme: SignatureScheme) -> None:
    held = [made_secret(scheme, number) for number in range(WEBHOOK_SECRETS)]
    for secret in held:
        assert isinstance(verified(scheme, sign(scheme, secret, BODY, START), *held), Delivery)
    other = sign(scheme, made_secret(scheme, 99), BODY, START)
    assert verified(scheme, other, *held) is SignatureFault.SIGNATURE


@schemes
def test_signature_without_secrets_is_refused(scheme: SignatureScheme) -> None:
    assert verified(scheme, sign(scheme, made_secret(scheme), BODY, START)) is SignatureFault.SIGNATURE


@pytest.mark.parametrize("scheme", [SignatureScheme.STANDARD_WEBHOOKS, SignatureScheme.SVIX, SignatureScheme.STRIPE])
def test_header_with_several_signatures_is_accepted_by_one(scheme: SignatureScheme) -> None:
    old, new = made_secret(scheme, 1), made_secret(scheme, 2)
    first, second = sign(scheme, old, BODY, START), sign(scheme, new, BODY, START)
    name = next(name for name in first if name.endswith("signature"))
    is_stripe = scheme is SignatureScheme.STRIPE
    added = f",{second[name].partition(',')[2]}" if is_stripe else f" {second[name]}"
    both = {**first, name: first[name] + added}
    for secret in (old, new):
        assert isinstance(verified(scheme, both, secret), Delivery)


@pytest.mark.parametrize("scheme", TIMED)
@pytest.mark.parametrize(("off_s", "fault"), [(-300, None), (300, None), (-301, "time"), (301, "time")])
def test_signed_time_outside_the_tolerance_is_refused(scheme: SignatureScheme, off_s: int, fault: str | None) -> None:
    secret = made_secret(scheme)
    found = verified(scheme, sign(scheme, secret, BODY, START + timedelta(seconds=off_s)), secret)
    assert (found if isinstance(found, SignatureFault) else None) == fault


def test_github_id_is_of_the_body_not_of_unsigned_headers() -> None:
    secret = made_secret(SignatureScheme.GITHUB)
    sent = sign(SignatureScheme.GITHUB, secret, BODY, START)
    found = [
        verified(SignatureScheme.GITHUB, {**sent, "x-github-delivery": name, "x-github-event": name}, secret)
        for name in ("one", "another")
    ]
    assert found[0] == found[1]


def test_svix_takes_unbranded_names_and_no_mixture() -> None:
    scheme, secret = SignatureScheme.SVIX, made_secret(SignatureScheme.SVIX)
    sent = sign(scheme, secret, BODY, START)
    unbranded = {name.replace("svix", "webhook"): value for name, value in sent.items()}
    assert isinstance(verified(scheme, unbranded, secret), Delivery)
    mixed = {"svix-id": sent["svix-id"], **{name: unbranded[name] for name in unbranded if name != "webhook-id"}}
    assert verified(scheme, mixed, secret) is SignatureFault.HEADERS


@pytest.mark.parametrize(
    ("scheme", "secret", "key"),
    [
        (SignatureScheme.STANDARD_WEBHOOKS, "whsec_" + base64.b64encode(b"k" * 24).decode(), b"k" * 24),
        (SignatureScheme.STANDARD_WEBHOOKS, "v1,whsec_" + base64.b64encode(b"k" * 24).decode(), b"k" * 24),
        (SignatureScheme.STRIPE, "whsec_" + "k" * 24, b"whsec_" + b"k" * 24),
        (SignatureScheme.STANDARD_WEBHOOKS, "whsec_" + base64.b64encode(b"k" * 15).decode(), None),
        (SignatureScheme.STANDARD_WEBHOOKS, "whsec_no base64 at all!", None),
        (SignatureScheme.STANDARD_WEBHOOKS, "whpk_" + base64.b64encode(b"k" * 32).decode(), None),
        (SignatureScheme.GITHUB, "too-few", None),
    ],
)
def test_secret_is_parsed_as_consoles_show_it(scheme: SignatureScheme, secret: str, key: bytes | None) -> None:
    if key is not None:
        assert parse_key(scheme, secret) == key
        return
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # its text is what is looked at
        parse_key(scheme, secret)
    assert secret not in str(refused.value)


def test_refusals_take_about_the_same_time() -> None:
    scheme, body = SignatureScheme.STANDARD_WEBHOOKS, b"x" * 262_144
    keys = [parse_key(scheme, made_secret(scheme))]
    good = in_lists(sign(scheme, made_secret(scheme), body, START))
    wrong = in_lists(sign(scheme, made_secret(scheme, 1), body, START))
    now_s = START.timestamp()
    refusals: dict[str, Callable[[], object]] = {
        "wrong signature": lambda: verify(scheme, keys, wrong, body, now_s, 300.0),
        "wrong time": lambda: verify(scheme, keys, good, body, now_s + 900, 300.0),
        "no headers": lambda: verify(scheme, keys, {}, body, now_s, 300.0),
        "another scheme": lambda: verify(SignatureScheme.STRIPE, keys, good, body, now_s, 300.0),
        "four secrets": lambda: verify(scheme, keys * 4, wrong, body, now_s, 300.0),
        "unknown source": lambda: refuse(good, body),
    }
    # The least of many, in turns: what a busy machine adds to some is not in it.
    least = dict.fromkeys(refusals, math.inf)
    for _ in range(40):
        for name, refused in refusals.items():
            began = time.perf_counter()
            assert isinstance(refused(), SignatureFault)
            least[name] = min(least[name], time.perf_counter() - began)
    assert max(least.values()) < 1.5 * min(least.values()), least


# ------------------------------------------------------------------------------------------------------------ mutations

MUTATED = 10_000
Request = tuple[Signed, bytes]
Mutation = Callable[[random.Random, SignatureScheme, Signed, bytes], Request]
_SIGNED_BY_GITHUB = frozenset({"x-hub-signature-256"})


def signed_names(scheme: SignatureScheme, headers: Signed) -> list[str]:
    """Return the headers that count: GitHub's others are not signed, and not looked at."""
    return sorted(set(headers) & _SIGNED_BY_GITHUB if scheme is SignatureScheme.GITHUB else headers)


def flip_body(chance: random.Random, _scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    flipped = bytearray(body)
    flipped[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return headers, bytes(flipped)


def flip_header(chance: random.Random, scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    name = chance.choice(signed_names(scheme, headers))
    value = headers[name]
    at = chance.randrange(len(value))
    return {**headers, name: value[:at] + chr(ord(value[at]) ^ 1 << chance.randrange(8)) + value[at + 1 :]}, body


def cut_body(chance: random.Random, _scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    return headers, chance.choice(
        [body[: chance.randrange(len(body))], body[chance.randrange(1, len(body)) :], body + b" "]
    )


def cut_header(chance: random.Random, scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    name = chance.choice(signed_names(scheme, headers))
    return {**headers, name: headers[name][: chance.randrange(len(headers[name]))]}, body


def drop_header(chance: random.Random, scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    name = chance.choice(signed_names(scheme, headers))
    return {other: value for other, value in headers.items() if other != name}, body


def swap_headers(chance: random.Random, scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    """Take a header of another message of the same sender, or exchange two of this one."""
    names = signed_names(scheme, headers)
    if len(names) > 1 and chance.random() < 0.5:
        one, other = chance.sample(names, 2)
        return {**headers, one: headers[other], other: headers[one]}, body
    later = START + timedelta(seconds=chance.randrange(1, 200))
    foreign = sign(
        scheme, made_secret(scheme), body + b"\n", later, name=f"msg_{chance.random()}"[:12].replace(".", "")
    )
    name = chance.choice(names)
    return {**headers, name: foreign[name]}, body


def other_secret(chance: random.Random, scheme: SignatureScheme, _headers: Signed, body: bytes) -> Request:
    return sign(scheme, made_secret(scheme, chance.randrange(1, 1_000)), body, START), body


def shift_time(chance: random.Random, scheme: SignatureScheme, headers: Signed, body: bytes) -> Request:
    """Sign too early or too late; or move the time of what was signed, which GitHub does not have."""
    if scheme is SignatureScheme.GITHUB:
        return other_secret(chance, scheme, headers, body)
    shift = timedelta(seconds=chance.choice([-1, 1]) * chance.randrange(301, 10_000_000))
    if chance.random() < 0.5:
        return sign(scheme, made_secret(scheme), body, START + shift), body
    now, then = str(int(START.timestamp())), str(int((START + shift / 100_000).timestamp()) + 1)
    return {name: value.replace(now, then) for name, value in headers.items()}, body


def other_scheme(chance: random.Random, scheme: SignatureScheme, _headers: Signed, body: bytes) -> Request:
    other = chance.choice([one for one in SignatureScheme if one is not scheme])
    secret = made_secret(scheme)
    return sign(other, secret if other is SignatureScheme.GITHUB else made_secret(other), body, START), body


MUTATIONS: list[Mutation] = [
    *(flip_body, flip_header, cut_body, cut_header, drop_header, swap_headers, other_secret, shift_time, other_scheme)
]


async def test_mutated_requests_are_never_accepted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="syncbeat_server.http.webhooks")  # ten thousand warnings
    chance = random.Random(20_261_130)
    desk = Desk([source_of(scheme) for scheme in SignatureScheme])
    door = desk.door()
    answers = set()
    for number in range(MUTATED):
        scheme = list(SignatureScheme)[number % len(SignatureScheme)]
        headers = sign(scheme, made_secret(scheme), BODY, START)
        mutation = MUTATIONS[number // len(SignatureScheme) % len(MUTATIONS)]
        mutated, body = mutation(chance, scheme, headers, BODY)
        assert (mutated, body) != (headers, BODY), mutation.__name__
        answer = await door.receive("shop", str(scheme), in_lists(mutated), body, lambda: pytest.fail("known"), str)
        assert not answer.headers
        answers.add((answer.status, answer.body, answer.content_type))
        assert not desk.ingested, f"{mutation.__name__} of {scheme}"
    assert len(answers) == 1, "all of them are answered alike"
    assert {outcome for _, outcome, _ in desk.counted} == {WebhookOutcome.UNSIGNED}
    assert {fault for _, _, fault in desk.counted} == {*SignatureFault} - {SignatureFault.UNKNOWN_SOURCE}


@schemes
async def test_unmutated_request_is_accepted(scheme: SignatureScheme) -> None:
    desk = Desk([source_of(scheme)])
    headers = in_lists(sign(scheme, made_secret(scheme), BODY, START))
    answer = await desk.door().receive("shop", str(scheme), headers, BODY, lambda: None, str)
    assert (answer.status, len(desk.ingested)) == (200, 1)
