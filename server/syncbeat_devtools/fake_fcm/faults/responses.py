"""The responses of FCM for each fault that has one."""

from __future__ import annotations

from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultKind
from syncbeat_devtools.fake_fcm.responses import (
    HTML_TYPE,
    Response,
    bad_request,
    fcm_error,
    google_error,
    html_error,
    quota_exceeded,
    unauthenticated,
)

_UNAVAILABLE = google_error(503, "UNAVAILABLE", "The service is currently unavailable.", [fcm_error("UNAVAILABLE")])
_BAD_VALUE = "Invalid value at 'message.data[0].value' (TYPE_STRING), 12"

_RESPONSES: dict[FaultKind, Response] = {
    FaultKind.UNREGISTERED: google_error(
        404, "NOT_FOUND", "Requested entity was not found.", [fcm_error("UNREGISTERED")]
    ),
    FaultKind.NOT_FOUND: html_error(404, "The requested URL was not found on this server."),
    FaultKind.SENDER_ID_MISMATCH: google_error(
        403, "PERMISSION_DENIED", "SenderId mismatch", [fcm_error("SENDER_ID_MISMATCH")]
    ),
    FaultKind.BAD_TOKEN: google_error(
        400,
        "INVALID_ARGUMENT",
        "The registration token is not a valid FCM registration token",
        [fcm_error("INVALID_ARGUMENT")],
    ),
    FaultKind.BAD_TOKEN_FIELD: google_error(
        400,
        "INVALID_ARGUMENT",
        "Request contains an invalid argument.",
        [fcm_error("INVALID_ARGUMENT"), bad_request("message.token", "Invalid registration token")],
    ),
    FaultKind.BAD_PAYLOAD: google_error(
        400, "INVALID_ARGUMENT", _BAD_VALUE, [bad_request("message.data[0].value", _BAD_VALUE)]
    ),
    FaultKind.THIRD_PARTY_AUTH: google_error(
        401,
        "UNAUTHENTICATED",
        "Auth error from APNS or Web Push Service",
        [fcm_error("THIRD_PARTY_AUTH_ERROR")],
    ),
    FaultKind.UNAUTHENTICATED: unauthenticated("ACCESS_TOKEN_EXPIRED"),
    FaultKind.INTERNAL: google_error(500, "INTERNAL", "Internal error encountered.", [fcm_error("INTERNAL")]),
    FaultKind.BAD_GATEWAY: html_error(
        502, "The server encountered a temporary error and could not complete your request."
    ),
    FaultKind.UNAVAILABLE: _UNAVAILABLE,
    FaultKind.ACCEPTED_THEN_503: _UNAVAILABLE,
    FaultKind.NOT_JSON: Response(200, b"<html>not what was asked for</html>\n", (), HTML_TYPE),
}


def fault_response(fault: Fault, project_id: str) -> Response:
    """Return the response of a fault, with its Retry-After header.

    Raises:
        KeyError: the fault has no response of its own (slow, hang and the resets).
    """
    if fault.kind is FaultKind.QUOTA_EXCEEDED:
        return quota_exceeded(project_id, fault.headers())
    response = _RESPONSES[fault.kind]
    return response._replace(headers=response.headers + fault.headers())
