"""What every call but the supervisor's goes through: who calls, whether there is a place, and how it fails.

All methods are registered as streams of bytes in both directions, which is the same on the wire. Of any other kind gRPC
reads the message, up to max_message_bytes of it, before any code of ours can say no, and does not say when the answer
has left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import DecodeError

from phs_milvus.contract import telemetry
from phs_milvus.contract.errors import PhsError, status_of
from phs_milvus.contract.tokens import Tokens
from phs_server.edge.admission import Admission
from phs_server.edge.callers import Caller, caller_of
from phs_server.edge.places import Place, Places
from phs_server.ops.metrics import Metrics

log = logging.getLogger(__name__)

Serve = Callable[[grpc.aio.ServicerContext, Caller, Place], Awaitable[None]]


class Calls:
    """Makes gRPC method handlers. Belongs to one event loop.

    Attributes:
        open: guarded calls in progress, to the last byte of their answers.

    Args:
        tokens: None where no call needs one.
    """

    def __init__(self, admission: Admission, metrics: Metrics, tokens: Tokens | None) -> None:
        self._admission = admission
        self._metrics = metrics
        self._tokens = tokens
        self.open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    async def finished(self) -> None:
        """Returns when no guarded call is in progress."""
        await self._none_open.wait()

    def guarded(self, name: str, places: Places, serve: Serve) -> grpc.RpcMethodHandler:
        """A method for those who have a token; the end of the server waits for its calls.

        Args:
            name: for metrics.
            serve: reads the context's messages and writes bytes to it.
        """

        async def call(_: object, context: grpc.aio.ServicerContext) -> None:
            self.open += 1
            self._none_open.clear()
            context.add_done_callback(self._ended)
            await self._through(name, places, serve, context, self._tokens)

        return grpc.stream_stream_rpc_method_handler(call)

    def open_to_all(self, name: str, places: Places, serve: Serve) -> grpc.RpcMethodHandler:
        """A method for anybody, which the end of the server does not wait for."""

        async def call(_: object, context: grpc.aio.ServicerContext) -> None:
            await self._through(name, places, serve, context, None)

        return grpc.stream_stream_rpc_method_handler(call)

    async def _through(
        self, name: str, places: Places, serve: Serve, context: grpc.aio.ServicerContext, tokens: Tokens | None
    ) -> None:
        if caller_of(context.peer()).is_private:
            # It has neither TLS nor tokens. The same words as gRPC's own, of a method that is not there.
            self._fail(name, context, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        try:
            token = tokens.identify(_authorization(context)) if tokens else ""
            caller = caller_of(context.peer(), token, b"".join(context.auth_context().get("x509_pem_cert", ())))
            with places.taken(caller) as place:
                await serve(context, caller, place)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s from %s: answered%s", name, context.peer(), _trace_note(context))
            return
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # By the client, its deadline, or the end of its connection while it was answered. Raised on, for gRPC would
            # otherwise try to send a status.
            self._metrics.failed(name, grpc.StatusCode.CANCELLED.name)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s from %s: cancelled%s", name, context.peer(), _trace_note(context))
            raise asyncio.CancelledError from None
        except Exception as error:
            status = status_and_details(error)
        self._fail(name, context, *status)

    def _fail(self, method: str, context: grpc.aio.ServicerContext, code: grpc.StatusCode, details: str) -> None:
        """Ends a call with an error; the handler must return right after.

        Not by `context.abort`: the exception that it raises, its frames and gRPC's state of the call keep one another
        alive, with all that was received, until Python collects its oldest generation: hundreds of MiB later.
        """
        self._metrics.failed(method, code.name)
        log.debug("%s from %s: %s %s%s", method, context.peer(), code.name, details, _trace_note(context))
        context.set_code(code)
        context.set_details(details)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # What gRPC clients with a retry policy wait instead of their own back-off:
            # https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self._admission.retry_hint_ms)),))

    def _ended(self, _: grpc.aio.ServicerContext) -> None:
        self.open -= 1
        if not self.open:
            self._none_open.set()


def _authorization(context: grpc.aio.ServicerContext) -> str:
    return str(dict(context.invocation_metadata()).get("authorization", ""))


def status_and_details(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What an error is on the wire."""
    if isinstance(error, PhsError):
        name, details = status_of(error)
        return grpc.StatusCode[name], details
    if isinstance(error, DecodeError):
        return grpc.StatusCode.INVALID_ARGUMENT, f"request: not a message of this method ({error})"
    log.error("internal error", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}: {error}"


def _trace_note(context: grpc.aio.ServicerContext) -> str:
    """The caller's trace, as its metadata name it."""
    trace = telemetry.trace_of(context.invocation_metadata())
    return f" (trace {trace})" if trace else ""
