"""The grpc.health.v1 service: what is ready, what is alive, and watches that end when the server drains."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from phs_server.edge.service import SERVICE_NAME

# Send requests here. "" is what probes ask for by default.
_READINESS = ("", SERVICE_NAME, "readiness")
# Leave this process running: holds while loading and draining, ends when a thread that runs the model has died.
_LIVENESS = ("liveness",)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health.aio.HealthServicer):
    """Readiness under "", the service's name and "readiness"; liveness under "liveness"."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()
        self._draining = False

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    async def report(self, *, ready: bool, live: bool = True) -> None:
        for names, status in ((_READINESS, ready), (_LIVENESS, live)):
            for name in names:
                await self.set(name, _SERVING if status else _NOT_SERVING)

    def drain(self) -> None:
        """Ends watches, which last as long as their clients and would hold up the server's stop."""
        self._draining = True
        for watch in self._watches:
            watch.cancel()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await watch
        except asyncio.CancelledError:
            if not self._draining:
                raise
            # Not by context.abort, see FocusEncoderService._fail.
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details("the server is shutting down")
        finally:
            self._watches.discard(watch)
