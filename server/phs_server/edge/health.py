"""The grpc.health.v1 service: what is ready, what is alive, and watches that end when the server drains.

Not the one of grpcio-health-checking: there any name may be asked for and is kept, messages are read before anything is
admitted, and a watch whose reader has stopped holds up every change of status.
"""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from phs_milvus.contract.errors import InvalidInput, ServerDraining

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_Status = health_pb2.HealthCheckResponse


class Health:
    """Readiness under "", the service's name and "readiness"; liveness under "liveness".

    Args:
        service_name: the service that becomes ready.
    """

    def __init__(self, service_name: str) -> None:
        # Send requests here. "" is what probes ask for by default.
        self._readiness = ("", service_name, "readiness")
        # Leave this process running: holds while loading and draining, ends when a thread that runs the model has died.
        self._liveness = ("liveness",)
        self._statuses: dict[str, int] = {}
        self._draining = False
        self._news = asyncio.Event()
        self.report(ready=False)

    def report(self, *, ready: bool, live: bool = True) -> None:
        """Sets what checks answer from now on, and tells the watches, waiting for none of them."""
        for names, holds in ((self._readiness, ready), (self._liveness, live)):
            self._statuses |= dict.fromkeys(names, _Status.SERVING if holds else _Status.NOT_SERVING)
        self._tell()

    def drain(self) -> None:
        """Ends watches, which last as long as their clients."""
        self._draining = True
        self.report(ready=False)

    async def check(self, message: bytes, context: grpc.aio.ServicerContext) -> None:
        """Answers once.

        Raises:
            InvalidInput: no message of this method.
        """
        status = self._statuses.get(_name(message))
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(f"known names: {', '.join(sorted(name for name in self._statuses if name))}")
        else:
            await context.write(_Status(status=status).SerializeToString())

    async def watch(self, message: bytes, context: grpc.aio.ServicerContext) -> None:
        """Answers at once and at every change.

        Raises:
            InvalidInput: no message of this method.
            ServerDraining: the server is shutting down.
        """
        name, told = _name(message), None
        while True:
            news, status = self._news, self._statuses.get(name, _Status.SERVICE_UNKNOWN)
            if status != told:
                await context.write(_Status(status=status).SerializeToString())
                told = status
                continue  # it may have changed while this was written
            if self._draining:
                raise ServerDraining("the server is shutting down")
            await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _name(message: bytes) -> str:
    try:
        return health_pb2.HealthCheckRequest.FromString(message).service
    except DecodeError as error:
        raise InvalidInput(f"not a message of this method ({error})", "request") from None
