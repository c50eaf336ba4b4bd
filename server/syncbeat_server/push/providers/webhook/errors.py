"""Maps the answers of a relay to outcomes."""

from __future__ import annotations

from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.providers import answers


def classify(status: int, text: bytes) -> Outcome:
    """Return the outcome of an attempt from the status and body of the answer.

    2xx: the relay took it. 404 or 410 with `{"unregistered": true}`: the registration token is dead; without that they
    are about this message only, as 400, 413 and 422 are. 401 and 403 are about the relay's bearer token.
    """
    if 200 <= status < 300:
        return Outcome(Verdict.SENT)
    if status in (404, 410) and answers.parse(text).get("unregistered") is True:
        return Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED)
    if status in (401, 403):
        return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)
    if status in (400, 404, 410, 413, 422):
        return Outcome(Verdict.REJECTED, Reason.REJECTED)
    return Outcome(Verdict.RETRY, Reason.THROTTLED if status == 429 else Reason.UNAVAILABLE)
