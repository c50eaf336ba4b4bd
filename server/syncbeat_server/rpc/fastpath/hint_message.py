"""Fills hint messages in place, which takes half the time of making the parts and copying them into the whole.

The plain version is the constructor, `Hint(poll_interval=..., next_poll_time=..., ...)`. Paid for by the figure
`hint_vs_echo`.
"""

from __future__ import annotations

from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.rpc.fastpath.time_fields import set_duration, set_timestamp
from syncbeat_server.sync.model import Hint, Priority

_PRIORITIES = {priority: pb.Priority.Value(f"PRIORITY_{priority}") for priority in Priority}


def hint_message(hint: Hint) -> pb.Hint:
    """Return a hint as a message."""
    message = pb.Hint()
    _fill(message, hint)
    return message


def hint_answer(hint: Hint) -> pb.GetHintResponse:
    """Return the answer to GetHint."""
    answer = pb.GetHintResponse()
    _fill(answer.hint, hint)
    return answer


def _fill(message: pb.Hint, hint: Hint) -> None:
    set_duration(message.poll_interval, hint.poll_interval_s)
    message.priority = _PRIORITIES[hint.priority]
    set_timestamp(message.next_poll_time, hint.next_poll_at)
    message.changed = hint.changed
    add_head = message.heads.add
    for head in hint.heads:
        add_head(scope=head.scope, epoch=head.epoch, sequence=head.sequence)
    message.valid_duration.seconds = int(hint.valid_s)
    message.prefer_stream = hint.prefer_stream
    message.explanation = hint.explanation
    message.more_scopes = hint.more_scopes
