"""Tests which text a device's locale gets: BCP 47 with the aliases, parents and likely scripts of CLDR."""

from __future__ import annotations

import pytest
from langcodes import Language

from syncbeat_server.push.content import locales
from syncbeat_server.push.content.templates import Template

pytestmark = pytest.mark.unit

MANY = [
    "de",
    "de-AT",
    "zh-Hant",
    "zh-Hans",
    "he",
    "id",
    "nb",
    "fil",
    "es",
    "es-419",
    "sr",
    "sr-Latn",
    "pt",
    "pt-PT",
    "en-GB",
    "en-001",
    "ru",
    "fr",
    "yi",
    "ro",
]


def told(locale: str, *offered: str) -> str:
    """The locale whose text is told; 'default' for that of all others."""
    template = Template.parse({name: (name, "") for name in ("default", *offered)})
    return template.render(locale, {})[0]


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        # Aliases: codes that were replaced, which Java and Android still send.
        *(("iw", "he"), ("iw-IL", "he"), ("he-IL", "he"), ("in", "id"), ("in_ID", "id"), ("ji", "yi"), ("mo", "ro")),
        *(("tl", "fil"), ("tl-PH", "fil"), ("fil-PH", "fil"), ("cmn-Hans-CN", "zh-Hans"), ("zh-cmn-Hant", "zh-Hant")),
        *(("deu", "de"), ("ger-DE", "de"), ("sh", "sr-Latn"), ("sh-RS", "sr-Latn")),
        # Norwegian is written as Bokmål unless it says otherwise; who writes Nynorsk reads it.
        *(("no", "nb"), ("no-NO", "nb"), ("nb-NO", "nb"), ("nn", "nb"), ("nn_NO", "nb"), ("no-NO-NY", "nb")),
        # Scripts follow from the region.
        *(("zh-TW", "zh-Hant"), ("zh_HK", "zh-Hant"), ("zh-MO", "zh-Hant"), ("zh-Hant-HK", "zh-Hant")),
        *(("zh", "zh-Hans"), ("zh-CN", "zh-Hans"), ("zh-SG", "zh-Hans"), ("zh-Hans-HK", "zh-Hans")),
        *(("yue", "zh-Hant"), ("yue-Hant-HK", "zh-Hant"), ("yue-CN", "zh-Hans")),
        *(("sr-Latn-RS", "sr-Latn"), ("sr-ME", "sr-Latn"), ("sr-RS", "sr"), ("sr-Cyrl-BA", "sr"), ("sr-BA", "sr")),
        # Parents: what a region's readers share.
        *(("es-MX", "es-419"), ("es-AR", "es-419"), ("es-US", "es-419"), ("es-ES", "es"), ("es", "es")),
        *(("pt-AO", "pt-PT"), ("pt-MZ", "pt-PT"), ("pt-BR", "pt"), ("pt", "pt")),
        *(("en-AU", "en-GB"), ("en-IE", "en-GB"), ("fr-CA", "fr"), ("de-CH", "de")),
        *(("de-AT", "de-AT"), ("DE_at", "de-AT"), ("de-AT-1901", "de-AT"), ("de-Latn-AT", "de-AT")),
        # As systems write them.
        *(("de_DE.UTF-8", "de"), ("de_AT@euro", "de-AT"), ("zh_TW_#Hant", "zh-Hant"), ("sr_RS_#Latn", "sr-Latn")),
        *(("sr__#Latn", "sr-Latn"), ("zh-Hans_CN", "zh-Hans"), ("de-DE-u-co-phonebk", "de"), ("de-u", "de")),
        *(("fr-FR@calendar=japanese", "fr"), ("de--DE", "de"), ("de-", "de"), ("zh-Hant-TW-x-private", "zh-Hant")),
    ],
)
def test_locale_gets_the_nearest_text(locale: str, expected: str) -> None:
    assert told(locale, *MANY) == expected
    assert told(locale, *reversed(MANY)) == expected, "the order in which texts stand in the file means nothing"


@pytest.mark.parametrize(
    ("locale", "offered", "expected"),
    [
        # Another script is not read by everybody: in CLDR the parent of these is the root.
        ("zh-TW", ["zh"], "default"),
        ("zh-Hant", ["zh-CN"], "default"),
        ("zh-CN", ["zh-TW"], "default"),
        ("sr-Latn", ["sr"], "default"),
        ("sr", ["sr-Latn"], "default"),
        ("az-Cyrl", ["az"], "default"),
        ("uz-Cyrl-UZ", ["uz"], "default"),
        ("pa-Arab", ["pa"], "default"),
        ("hi-Latn", ["hi"], "default"),
        # Nor another language, though many who speak the one know the other.
        ("uk", ["ru"], "default"),
        ("uk-UA", ["ru-UA"], "default"),
        ("be", ["ru"], "default"),
        ("ca", ["es"], "default"),
        ("br-FR", ["fr"], "default"),
        ("da", ["nb"], "default"),
        ("de", ["en", "nl"], "default"),
        ("gsw-CH", ["de"], "default"),
        # Texts are named by aliases and regions too.
        ("he-IL", ["iw"], "iw"),
        ("id", ["in"], "in"),
        ("nb-NO", ["no"], "no"),
        ("nn", ["no"], "no"),
        ("fil", ["tl"], "tl"),
        ("zh-HK", ["zh-TW", "zh-CN"], "zh-TW"),
        ("zh-MO", ["zh-TW", "zh-HK"], "zh-HK"),
        ("zh-Hans-MY", ["zh-TW", "zh-CN"], "zh-CN"),
        ("sr-Latn-BA", ["sr-RS", "sr-ME"], "sr-ME"),
        ("de-DE", ["de-AT"], "de-AT"),
        ("de", ["de-CH", "de-DE"], "de-DE"),
        ("fr-CA", ["fr-BE", "fr"], "fr"),
        ("es-MX", ["es"], "es"),
        ("en-150", ["en-001", "en"], "en-001"),
        ("en-AU", ["en-001", "en"], "en-001"),
        ("es-ES", ["es-419"], "es-419"),
        ("nn", ["nb", "nn"], "nn"),
        ("iw", ["he", "iw"], "iw"),  # the very name goes first
        ("ms", ["ms-Arab", "ms"], "ms"),
        ("hr-HR", ["sr-Latn", "sr"], "sr-Latn"),  # of one macrolanguage, and of two the one in the script
        ("ca-valencia", ["ca", "ca-valencia"], "ca-valencia"),
        ("ca-ES-valencia-x-a", ["ca", "ca-valencia"], "ca-valencia"),
        ("ca-ES", ["ca-valencia", "ca"], "ca"),
    ],
)
def test_locale_gets_no_text_in_another_script_or_language(locale: str, offered: list[str], expected: str) -> None:
    assert told(locale, *offered) == expected


@pytest.mark.parametrize(
    "locale",
    ["", "C", "POSIX", "und", "root", "x-foo", "123", "a", "ä", "-", "_", "@", "en" * 60, "default", "🇩🇪", "i-x"],
)
def test_locale_invalid_gets_the_default(locale: str) -> None:
    assert told(locale, *MANY) == "default"


@pytest.mark.parametrize("name", ["", "english", "de AT", "d", "de-", "de-u", "ä", "de@euro", "und", "Default"])
def test_locale_of_a_text_is_bcp_47(name: str) -> None:
    with pytest.raises(ValueError, match="locale"):
        Template.parse({"default": ("", ""), name: ("a", "b")})


def test_locale_cache_is_bounded() -> None:
    for number in range(3 * locales.MAX_CACHED):
        assert told(f"fr-x-{number:x}", "de", "fr") == "fr"
        assert len(Language._INSTANCES) <= 2 * locales.MAX_CACHED
        assert len(Language._PARSE_CACHE) <= 2 * locales.MAX_CACHED
    assert locales.nearest.cache_info().currsize <= locales.MAX_CACHED
