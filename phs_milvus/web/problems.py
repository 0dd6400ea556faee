"""Errors as application/problem+json (RFC 9457), with the name of the field that is wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from phs_milvus.contract.errors import (
    DeadlineExceeded,
    EncoderBusy,
    EncoderError,
    EncoderUnavailable,
    InvalidInput,
    MilvusUnavailable,
    ModelMismatch,
    PhsError,
    TokenRefused,
)

log = logging.getLogger(__name__)

# The first row that fits. The server behind this one is at fault from 502 on.
_STATUS: tuple[tuple[type[PhsError], HTTPStatus], ...] = (
    (InvalidInput, HTTPStatus.BAD_REQUEST),
    (ModelMismatch, HTTPStatus.CONFLICT),
    (TokenRefused, HTTPStatus.UNAUTHORIZED),
    (EncoderUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (EncoderBusy, HTTPStatus.SERVICE_UNAVAILABLE),
    (MilvusUnavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeadlineExceeded, HTTPStatus.GATEWAY_TIMEOUT),
    (EncoderError, HTTPStatus.BAD_GATEWAY),
    (PhsError, HTTPStatus.BAD_GATEWAY),
)
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "1"},
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": "1"},
}


class Problem(PhsError):
    """A request that is answered with this status.

    Attributes:
        status: of HTTP, 400 to 599.
        field: what is wrong, as the caller named it; "" where that says nothing.
    """

    def __init__(self, status: int, detail: str, field: str = "") -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.field = field


def problem_response(error: Exception) -> JSONResponse:
    """The answer to a request that failed; errors that are not ours are logged, and tell the caller nothing."""
    if isinstance(error, HTTPException):  # Starlette's own: no such path, no such method
        return _response(HTTPStatus(error.status_code), error.detail, headers=error.headers)
    if isinstance(error, Problem):
        return _response(error.status, str(error), error.field)
    if isinstance(error, PhsError):
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        return _response(status, str(error), getattr(error, "field", ""))
    log.error("internal error", exc_info=error)
    return _response(HTTPStatus.INTERNAL_SERVER_ERROR, "this server failed to answer; its log says why")


def _response(
    status: HTTPStatus, detail: str, field: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body: dict[str, Any] = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
    if field:
        body["field"] = field
    return JSONResponse(
        body, int(status), {**_HEADERS.get(status, {}), **(headers or {})}, media_type="application/problem+json"
    )
