"""Tells refusals as RFC 9457 wants it: `application/problem+json`, with the `reason` of our errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from syncbeat_server.errors import Reason

PROBLEM = "application/problem+json"
_REASONS = {404: Reason.NOT_FOUND, 500: Reason.INTERNAL}
"""By HTTP status; other refusals are of requests that are wrong in themselves."""


def problem(status: HTTPStatus, reason: Reason, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a problem document as an answer."""
    body = problem_body(status, reason, detail)
    return web.Response(body=body, content_type=PROBLEM, status=status, headers=headers)


def problem_body(status: HTTPStatus, reason: Reason, detail: str) -> bytes:
    """Return a problem document."""
    # Without `type`, a problem is what its status says (RFC 9457, section 4.2.1).
    document = {"title": status.phrase, "status": int(status), "detail": detail, "reason": reason}
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer what aiohttp refuses as a problem."""
    try:
        return await handler(request)
    except web.HTTPError as error:
        status = HTTPStatus(error.status)
        answer = problem(status, _REASONS.get(status, Reason.INVALID_FIELD), status.description)
        if "allow" in error.headers:
            answer.headers["allow"] = error.headers["allow"]
        return answer


class ProblemConnection(web.RequestHandler):
    """Connection that also tells as a problem what it cannot parse, and what fails in us."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Log the error as aiohttp does, and return the problem in place of its text."""
        answer = super().handle_error(request, status, exc, message)
        if isinstance(answer, web.Response):
            told = HTTPStatus(status)
            # Not `message`, which repeats what was sent.
            answer.body = problem_body(told, _REASONS.get(status, Reason.INVALID_FIELD), told.description)
            answer.content_type = PROBLEM
        return answer


async def close_after(_request: web.Request, response: web.StreamResponse) -> None:
    """Let a connection serve one request."""
    response.force_close()


def end(connection: web.RequestHandler) -> None:
    """End a connection at once."""
    # Aborted: closing would wait for a client that does not read. The transports of uvloop are of no asyncio class.
    if connection.transport is not None:
        connection.transport.abort()
