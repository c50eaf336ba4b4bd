"""Measures what a notification shows against the payload that push services take. Pure."""

from __future__ import annotations

import orjson

from syncbeat_server.push.model import Content

# FCM takes 4,096 bytes of payload; what we add (ids, a cursor, an ack token, JSON around it all) stays below the rest.
MAX_CONTENT_BYTES = 3_072
_QUOTES = len('""')
_ENTRY_BYTES = len('"":"",')


def payload_bytes(shown: Content) -> int:
    """Count bytes as APNs and web push do, which are sent JSON: a quote or a line break in a text is two."""
    texts = [shown.title, shown.body, shown.image_url, shown.click_action, shown.sound, shown.channel_id]
    data = {**shown.data, "click_action": shown.link} if shown.link else shown.data  # browsers get a link twice
    for name, value in data.items():
        texts += (name, value)
    return sum(len(orjson.dumps(text)) - _QUOTES for text in texts if text) + len(data) * _ENTRY_BYTES
