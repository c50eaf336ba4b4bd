"""Texts by locale, with variables; and the tokens by which pushes are acknowledged."""

from __future__ import annotations

import base64
import uuid

import pytest

from syncbeat_server.push.content.ack_token import ack_token, claimed_app, verify_ack_token
from syncbeat_server.push.content.templates import Template, Text, render, render_all
from syncbeat_server.push.model import Content

pytestmark = pytest.mark.unit

TEMPLATE = Template.parse(
    {
        "default": ("{who} wrote", "{text}"),
        "de": ("{who} hat geschrieben", "{text}"),
        "de_AT": ("{who} hat gschriebn", "{text}"),
        "zh-Hant": ("{who} 寫了", ""),
    }
)
GIVEN = {"who": "Anna", "text": "{not} a variable"}


@pytest.mark.parametrize(
    ("locale", "title"),
    [
        ("", "Anna wrote"),
        ("fr-FR", "Anna wrote"),
        ("de", "Anna hat geschrieben"),
        ("de-DE", "Anna hat geschrieben"),
        ("DE_at", "Anna hat gschriebn"),
        ("de-AT-1901", "Anna hat gschriebn"),
        ("zh-Hant-TW", "Anna 寫了"),
        ("zh-Hans-CN", "Anna wrote"),
        ("default", "Anna wrote"),
    ],
)
def test_template_uses_the_nearest_locale(locale: str, title: str) -> None:
    assert TEMPLATE.render(locale, GIVEN)[0] == title


def test_template_variable_values_are_not_evaluated() -> None:
    assert TEMPLATE.render("de", GIVEN)[1] == "{not} a variable"
    assert TEMPLATE.variables == {"who", "text"}
    with pytest.raises(KeyError):
        TEMPLATE.render("de", {"who": "Anna"})


def test_template_braces() -> None:
    assert Text.parse("{{{name}}} and {{}}").fill({"name": "x"}) == "{x} and {}"


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{a b}", "{ä}"])
def test_template_bad_variable_is_refused_at_load(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Template.parse({"default": (text, "")})


def test_template_needs_a_default_text() -> None:
    with pytest.raises(ValueError, match="default"):
        Template.parse({"de": ("a", "b")})


def test_template_content_is_rendered_in_a_locale() -> None:
    content = Content(template="note", variables=GIVEN, data={"k": "v"}, badge=1)
    told = render(content, {"note": TEMPLATE}, "de-DE")
    assert told == Content("Anna hat geschrieben", "{not} a variable", {"k": "v"}, badge=1)
    assert render(told, {}, "de") is told
    assert len(render_all(content, TEMPLATE)) == 4
    with pytest.raises(KeyError):
        render(content, {}, "de")


SECRET = b"0" * 32
DELIVERY = str(uuid.UUID(int=7))


def test_ack_token_names_its_delivery() -> None:
    token = ack_token(SECRET, "my.app", DELIVERY)
    assert (claimed_app(token), verify_ack_token(SECRET, token)) == ("my.app", DELIVERY)
    assert len(token) == len("my.app.") + 43


@pytest.mark.parametrize(
    "other", ["", ".", "x", "default.", "default.AAAA", "default." + "A" * 43, "default.ä", "default.=="]
)
def test_ack_token_cannot_be_forged(other: str) -> None:
    assert verify_ack_token(SECRET, other) is None


def test_ack_token_with_a_flipped_bit_is_refused() -> None:
    token = ack_token(SECRET, "default", DELIVERY)
    raw = base64.urlsafe_b64decode(token.partition(".")[2] + "=")
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert verify_ack_token(SECRET, "default." + base64.urlsafe_b64encode(changed).decode().rstrip("=")) is None
    assert verify_ack_token(b"1" * 32, token) is None
    assert verify_ack_token(SECRET, token.replace("default", "defauld")) is None
