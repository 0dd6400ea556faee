"""Wiring: one gRPC server with the focus service, health and reflection; warm-up, signals and draining."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from phs_milvus._pb import encoder_pb2, encoder_pb2_grpc
from phs_milvus.errors import EncoderUnavailable, PhsError
from phs_server.config import Settings, parse
from phs_server.pipeline import Pipeline
from phs_server.service import FocusEncoderService

log = logging.getLogger(__name__)

SERVICE_NAME = encoder_pb2.DESCRIPTOR.services_by_name["FocusEncoder"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """One server on one event loop.

    Attributes:
        address: "host:port" once started, with the port actually bound.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self._service = FocusEncoderService(stream_window=4 * settings.max_batch_size)
        self._health = health.aio.HealthServicer()
        limit = settings.max_message_bytes
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit)]
        )
        encoder_pb2_grpc.add_FocusEncoderServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Opens the port, loads and warms up the model, then turns healthy.

        Raises:
            PhsError: the port is taken, or the model cannot be served.
        """
        await self._set_health(_NOT_SERVING)
        host, port = self.settings.host, self.settings.port
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise EncoderUnavailable(f"cannot listen on {host}:{port}: is the port taken? ({error})") from error
        await self._server.start()
        self.address = f"{host}:{bound}"
        pipeline = await asyncio.get_running_loop().run_in_executor(None, self._load)
        self._service.pipeline = pipeline
        await self._set_health(_SERVING)
        info = pipeline.info
        log.info(
            "serving %s (%s, %d heads, %d px, %s) on %s",
            *(info.model_id, info.model_type, info.heads, info.image_size, info.precision, self.address),
        )

    async def stop(self) -> None:
        """Refuses new requests, finishes accepted ones for up to `drain_seconds`, then closes."""
        await self._set_health(_NOT_SERVING)
        await self._server.stop(self.settings.drain_seconds)
        if self._service.pipeline is not None:
            self._service.pipeline.close(timeout=1.0)

    def _load(self) -> Pipeline:
        pipeline = Pipeline(self.settings)
        pipeline.warm_up()
        return pipeline

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


class ServerThread:
    """A server on a thread of this process, for scripts and tests.

    with ServerThread(Settings(model="./model", port=0)) as server:
        encoder = Encoder(server.address)
    """

    def __init__(self, settings: Settings) -> None:
        self.address = ""
        self._settings = settings
        self._started: Future[str] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="phs-server", daemon=True)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        self.address = self._started.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = Server(self._settings)
        try:
            await server.start()
        except BaseException as error:
            await server.stop()
            self._started.set_exception(error)
            return
        self._started.set_result(server.address)
        await self._stop.wait()
        await server.stop()


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains."""
    stop = asyncio.Event()
    server = Server(settings)
    try:
        await server.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        log.info("draining for up to %g s", settings.drain_seconds)
    finally:
        await server.stop()
    log.info("stopped")


def run(settings: Settings) -> int:
    """Serves in the foreground; returns the process's exit status."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        asyncio.run(serve(settings))
    except PhsError as error:
        print(f"phs-server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `phs-server`."""
    sys.exit(run(parse(arguments)))
