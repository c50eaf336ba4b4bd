"""Maps the answers of FCM to outcomes.

Only `FcmError.errorCode`, or a 400 that names `message.token`, condemns a token: a bare 404 may mean a wrong project,
and another 400 a payload that we built badly. An answer that a proxy in between wrote and not FCM (HTML, nothing, half
of something) means what its status means:

- 200: FCM took it. Another 2xx: something took it, but what? It may be a delivery, and is tried again.
- 401: the access token was not accepted. 403, 404: the project or the address is wrong.
- 413: the message is too large. 429: send slower. All others, redirects too: FCM was not reached.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from syncbeat_server.push.model import Blame, Outcome, Reason, Verdict
from syncbeat_server.push.providers import answers

# An error of the service account or the project, not of this message: no message is lost for it, nor is an attempt
# counted. The gate decides from the outcomes of other messages if the app pauses: see `Gate`.
CONFIG_ERROR = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.APP)

_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
# An error of the project's key for APNs or for web push, which the other platforms do not need.
_PLATFORM_ERROR = Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG, blame=Blame.PLATFORM)
_NOT_REACHED = Outcome(Verdict.RETRY, Reason.UNAVAILABLE)
# All of the reference of `ErrorCode`, and what firebase-admin knows beside it. Any other code is no fault of the app's
# credentials: its HTTP status decides.
_OUTCOMES: dict[str, Outcome] = {
    "UNREGISTERED": Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED),
    "SENDER_ID_MISMATCH": Outcome(Verdict.REJECTED, Reason.WRONG_SENDER),
    "QUOTA_EXCEEDED": Outcome(Verdict.RETRY, Reason.THROTTLED),
    "UNAVAILABLE": _NOT_REACHED,
    "INTERNAL": _NOT_REACHED,
    "UNSPECIFIED_ERROR": _NOT_REACHED,
    "THIRD_PARTY_AUTH_ERROR": _PLATFORM_ERROR,
    "APNS_AUTH_ERROR": _PLATFORM_ERROR,
    "INVALID_ARGUMENT": Outcome(Verdict.REJECTED, Reason.REJECTED),
}


def classify(status: int, text: bytes, retry_after_s: float | None) -> Outcome | None:
    """Return the outcome of an attempt from the answer; None if FCM did not accept the access token.

    `retry_after_s` is what the answer's Retry-After header asks for.
    """
    answer = answers.parse(text)
    if status == 200:
        # FCM took it, even if the rest of its answer cannot be read.
        return Outcome(Verdict.SENT, provider_message_id=str(answer.get("name", ""))[:256])
    code = _fcm_code(answer)
    if status == 401 and not code:
        return None
    if status == 400 and _names_token(answer):
        return Outcome(Verdict.INVALID_TOKEN, Reason.UNREGISTERED)
    outcome = _OUTCOMES.get(code) or _by_status(status, answer, known=bool(code))
    return replace(outcome, retry_after_s=retry_after_s)


def _by_status(status: int, answer: dict[str, Any], *, known: bool) -> Outcome:
    """Return the outcome of a status without a known code; `known`: FCM knew the app well enough to name a code."""
    if status == 429:
        return _OUTCOMES["QUOTA_EXCEEDED"]
    if status in (401, 403, 404):
        return Outcome(Verdict.RETRY, Reason.PROVIDER_CONFIG) if known else CONFIG_ERROR
    if status == 413 or (status == 400 and isinstance(answer.get("error"), dict)):
        return Outcome(Verdict.REJECTED, Reason.REJECTED)
    return Outcome(Verdict.RETRY, Reason.AMBIGUOUS) if 200 <= status < 300 else _NOT_REACHED


def _fcm_code(answer: dict[str, Any]) -> str:
    return next((str(detail.get("errorCode", "")) for detail in _details(answer, _FCM_ERROR)), "")


def _names_token(answer: dict[str, Any]) -> bool:
    """Return True if a bad request is so because of the token, which we only pass on, and not of our payload."""
    for detail in _details(answer, _BAD_REQUEST):
        violations = detail.get("fieldViolations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict) and violation.get("field") == "message.token":
                return True
    return False


def _details(answer: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    error = answer.get("error")
    details = error.get("details") if isinstance(error, dict) else None
    found = details if isinstance(details, list) else []
    return [detail for detail in found if isinstance(detail, dict) and detail.get("@type") == kind]
