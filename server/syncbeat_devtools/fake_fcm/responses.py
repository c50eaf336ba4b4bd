"""Responses, with the error bodies of Google.

The shapes are those of the published examples ("REST error codes for the HTTP v1 API", `google.rpc.Status` in
JSON) and of responses quoted in bug reports of FCM clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import orjson

JSON_TYPE = b"application/json; charset=UTF-8"
HTML_TYPE = b"text/html; charset=UTF-8"

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"

Detail = dict[str, object]


class Response(NamedTuple):
    """An HTTP response. `headers` excludes content-type and content-length; names are in lower case."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON_TYPE


class Exchange(Protocol):
    """A request whose response is pending."""

    def respond(self, response: Response) -> None:
        """Write the response; does nothing if the client has disconnected."""
        ...

    def reset(self) -> None:
        """Close the TCP connection with an RST."""
        ...


def json_response(content: object, status: int = 200) -> Response:
    """Return a response with `content` as JSON."""
    return Response(status, orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS))


def google_error(
    code: int,
    status: str,
    message: str,
    details: Sequence[Detail] = (),
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Response:
    """Return a `google.rpc.Status` in the form of Google's HTTP front end."""
    error: dict[str, object] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return Response(code, orjson.dumps({"error": error}, option=orjson.OPT_INDENT_2) + b"\n", headers)


def fcm_error(error_code: str) -> Detail:
    """Return the detail with FCM's own error code."""
    return {"@type": _FCM_ERROR, "errorCode": error_code}


def bad_request(field: str | None, description: str) -> Detail:
    """Return the detail that names the invalid field of a request."""
    violation = {"description": description}
    if field is not None:
        violation["field"] = field
    return {"@type": _BAD_REQUEST, "fieldViolations": [violation]}


def quota_exceeded(project_id: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """Return the 429 for a project that has used up its messages per minute."""
    description = "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute'."
    return google_error(
        429,
        "RESOURCE_EXHAUSTED",
        description,
        [
            fcm_error("QUOTA_EXCEEDED"),
            {
                "@type": _QUOTA_FAILURE,
                "violations": [{"subject": f"project:{project_id}", "description": description}],
            },
        ],
        headers,
    )


def unauthenticated(reason: str) -> Response:
    """Return the 401 of Google's front end: without an FcmError, so it is about the access token and not about a
    device.

    `reason` is CREDENTIALS_MISSING, ACCESS_TOKEN_EXPIRED or ACCESS_TOKEN_TYPE_UNSUPPORTED.
    """
    expected = (
        "Expected OAuth 2 access token, login cookie or other valid authentication credential. "
        "See https://developers.google.com/identity/sign-in/web/devconsole-project."
    )
    missing = reason == "CREDENTIALS_MISSING"
    what = "Request is missing required" if missing else "Request had invalid"
    noun = "credential" if missing else "credentials"
    realm = b'Bearer realm="https://accounts.google.com/"'
    return google_error(
        401,
        "UNAUTHENTICATED",
        f"{what} authentication {noun}. {expected}",
        [
            {
                "@type": _ERROR_INFO,
                "reason": reason,
                "domain": "googleapis.com",
                "metadata": {
                    "method": "google.firebase.fcm.v1.FcmService.SendMessage",
                    "service": "fcm.googleapis.com",
                },
            }
        ],
        ((b"www-authenticate", realm if missing else realm + b', error="invalid_token"'),),
    )


def permission_denied(project: str) -> Response:
    """Return the 403 for a project that the service account may not send for."""
    return google_error(
        403,
        "PERMISSION_DENIED",
        "Permission 'cloudmessaging.messages.create' denied on resource "
        f"'//cloudresourcemanager.googleapis.com/projects/{project}' (or it may not exist).",
        [
            {
                "@type": _ERROR_INFO,
                "reason": "IAM_PERMISSION_DENIED",
                "domain": "cloudresourcemanager.googleapis.com",
                "metadata": {
                    "resource": f"projects/{project}",
                    "permission": "cloudmessaging.messages.create",
                },
            }
        ],
    )


def html_error(code: int, sentence: str) -> Response:
    """Return the page of Google's front end for requests that no service handled."""
    page = (
        f"<!DOCTYPE html>\n<html lang=en>\n<title>Error {code}</title>\n"
        f"<p><b>{code}.</b> <ins>That's an error.</ins>\n<p>{sentence} <ins>That's all we know.</ins>\n"
    )
    return Response(code, page.encode(), (), HTML_TYPE)
