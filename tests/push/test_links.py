"""Tests what a tap may open, and which images may be shown."""

from __future__ import annotations

import pytest

from syncbeat_server.push.content.links import action_fault, image_fault
from syncbeat_server.push.model import link_scheme

pytestmark = pytest.mark.unit

URLS = ["https://example.org", "https://example.org:8443/a?b=c#d", "HTTPS://EXAMPLE.ORG/x", "https://[2001:db8::1]/"]
OWN = ["myapp://chat/1", "com.example.app://open", "x-app+v2://a", "MyApp://A"]
NAMES = ["OPEN", "com.example.ACTION_VIEW", "MEETING_INVITE", "öffnen", ""]
BAD_URLS = [
    *("http://example.org", "HTTP://example.org", "https://", "https:", "https:example.org", "https:///path"),
    *("https://[::1", "https://example.org:0/", "https://example.org:99999999/", "https://exa mple.org"),
    *("https:\\\\example.org", "https://\\example.org", "javascript:alert(1)", "JaVaScRiPt:alert(1)"),
    *("javascript://%0aalert(1)", " javascript:alert(1)", "java script:alert(1)", "vbscript:x", "data:text/html,x"),
    *("DATA://x", "file:///etc/passwd", "file:x", "File://x", "content://sms", "intent://x#Intent;end", "tel:112"),
    *("tel://112", "sms:1", "mailto:a@example.org", "about:blank", "blob:https://example.org/1", "ftp://example.org"),
    *("ws://example.org", "view-source://x", "filesystem:x", "market://details", "myapp:", "myapp:chat", "myapp://"),
    *("myapp://a b", "//example.org", "/path", "\\\\host\\share", "1:2", "a b", ":", "é:x", "\u00a0javascript:x"),
]


@pytest.mark.parametrize("action", [*URLS, *OWN, *NAMES])
def test_click_action_accepts_names_https_and_own_scheme(action: str) -> None:
    assert action_fault(action) is None
    assert (link_scheme(action) is None) == (action in NAMES)


@pytest.mark.parametrize("action", BAD_URLS)
def test_click_action_invalid_is_refused(action: str) -> None:
    assert action_fault(action)


@pytest.mark.parametrize("url", [*URLS, ""])
def test_image_url_accepts_https(url: str) -> None:
    assert image_fault(url) is None


@pytest.mark.parametrize("url", [*BAD_URLS, *OWN, "OPEN"])
def test_image_url_invalid_is_refused(url: str) -> None:
    assert image_fault(url)
