"""Wiring: one gRPC server with the focus service, health and reflection; warm-up, signals and draining."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NoReturn

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from phs_milvus.contract.errors import EncoderUnavailable, PhsError
from phs_server.config import Settings, parse
from phs_server.edge.health import Health
from phs_server.edge.security import Tokens, server_credentials
from phs_server.edge.service import SERVICE_NAME, FocusEncoderService
from phs_server.flow.pipeline import Pipeline
from phs_server.ops import logs, memory
from phs_server.ops.metrics import Metrics

log = logging.getLogger(__name__)

_WATCH_SECONDS = 0.5
_TRIM_SECONDS, _TRIM_SECONDS_BUSY = 2.0, 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server:
    """One server on one event loop.

    Attributes:
        address: "host:port" once started, with the port actually bound.

    Raises:
        InvalidInput: TLS or token files that cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        self._metrics = Metrics()
        self._service = FocusEncoderService(settings, self._metrics)
        self._health = Health()
        self._watchdog: asyncio.Task[None] | None = None
        self._stop_metrics: Callable[[], None] | None = None
        self._credentials = server_credentials(settings)
        tokens = [Tokens(Path(settings.token_file))] if settings.token_file else []
        self._server = grpc.aio.server(interceptors=tokens, options=_options(settings))
        self._service.add_to(self._server)
        self._health.add_to(self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Opens the port, loads and warms up the model, then turns ready.

        Raises:
            PhsError: the port is taken, or the model cannot be served.
        """
        settings = self.settings
        await self._health.report(ready=False)
        self.address = self._listen()
        if settings.metrics_port:
            self._export_gauges()
            self._stop_metrics = self._metrics.listen(settings.metrics_host, settings.metrics_port)
        await self._server.start()
        pipeline = await _on_daemon_thread(self._load)
        pipeline.observe_batch = self._metrics.batch
        self._service.pipeline = pipeline
        self._metrics.model(pipeline.info)
        self._watchdog = asyncio.create_task(self._watch(pipeline))
        await self._health.report(ready=True)
        info = pipeline.info
        log.info(
            "serving %s (%s, %d heads, %d px, %s) on %s",
            *(info.model_id, info.model_type, info.heads, info.image_size, info.precision, self.address),
        )

    async def stop(self) -> None:
        """Refuses new requests, finishes accepted ones for up to `drain_seconds`, then closes."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        await self._health.report(ready=False)
        self._health.drain()
        self._service.drain()
        await self._server.stop(self.settings.drain_seconds)
        if self._service.pipeline is not None:
            self._service.pipeline.close(timeout=1.0)
        if self._stop_metrics is not None:
            await asyncio.to_thread(self._stop_metrics)

    def _listen(self) -> str:
        host, port = self.settings.host, self.settings.port
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"  # IPv6
        try:
            if self._credentials is None:
                bound = self._server.add_insecure_port(f"{host}:{port}")
            else:
                bound = self._server.add_secure_port(f"{host}:{port}", self._credentials)
        except RuntimeError as error:
            raise EncoderUnavailable(f"cannot listen on {host}:{port}: is the port taken? ({error})") from error
        if self._credentials is None and host not in ("127.0.0.1", "localhost", "[::1]"):
            log.warning("listening on %s without TLS; see --tls-cert", host)
        return f"{host}:{bound}"

    def _load(self) -> Pipeline:
        pipeline = Pipeline(self.settings)
        pipeline.warm_up()
        return pipeline

    async def _watch(self, pipeline: Pipeline) -> None:
        """Turns health off when a thread that runs the model dies, and fails what it leaves behind; trims memory."""
        trimmed = time.monotonic()
        while pipeline.healthy:
            await asyncio.sleep(_WATCH_SECONDS)
            # Rarely under load: glibc holds the lock of each of its arenas for the time that it takes.
            if time.monotonic() - trimmed > (_TRIM_SECONDS_BUSY if self._service.admission.busy else _TRIM_SECONDS):
                trimmed = time.monotonic()
                try:
                    await asyncio.to_thread(memory.trim)
                except Exception:
                    log.exception("freed memory cannot be given back to the system")
        log.critical("a thread that runs the model has died; this server must be restarted")
        await self._health.report(ready=False, live=False)
        self._service.give_up()
        await asyncio.to_thread(pipeline.close, 0)

    def _export_gauges(self) -> None:
        service, admission = self._service, self._service.admission
        gauge = self._metrics.gauge
        gauge("phs_ready", "Whether the model is loaded and its threads are alive", lambda: _ready(service))
        for queue in ("decode", "encode", "rerank"):
            gauge("phs_queue_depth", "Items in a queue", partial(_queue_depth, service, queue), queue=queue)
        waiting = {"bytes": lambda: admission.waiting, "images": lambda: _waiting_images(service)}
        for kind, read in waiting.items():
            gauge("phs_bulk_waiting", "Bulk items that wait for room, for what they lack", read, room=kind)
        gauge("phs_calls", "Unary calls in progress", lambda: admission.calls)
        gauge("phs_streams", "Bulk streams open", lambda: admission.streams)
        gauge("phs_in_flight_bytes", "Bytes of requests in progress", lambda: admission.bytes_held)


def _ready(service: FocusEncoderService) -> float:
    return service.pipeline is not None and service.pipeline.healthy


def _queue_depth(service: FocusEncoderService, queue: str) -> float:
    return 0 if service.pipeline is None else service.pipeline.queue_depths[queue]


def _waiting_images(service: FocusEncoderService) -> float:
    return 0 if service.pipeline is None else service.pipeline.waiting


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_connection_calls),
        # Fixed flow-control windows: with the bandwidth probe they grow to megabytes for each call, read or not.
        ("grpc.http2.bdp_probe", 0),
        # Otherwise a second server on the port would start, and share its connections with the first.
        ("grpc.so_reuseport", 0),
        # Clients ping every minute (phs_milvus.client.channels); by default more than one in 5 minutes is abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
        # A client that vanished without a word frees its streams after this.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


async def _on_daemon_thread(work: Callable[[], Pipeline]) -> Pipeline:
    """Awaits `work` on a thread that does not keep the process alive: a signal may come while the model loads."""
    done: Future[Pipeline] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await asyncio.wrap_future(done)


class ServerThread:
    """A server on a thread of this process, for scripts and tests.

    with ServerThread(Settings(model="./model", port=0)) as server:
        encoder = Encoder(server.address)
    """

    def __init__(self, settings: Settings) -> None:
        self.address = ""
        self._settings = settings
        self._started: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        # asyncio.run and not a loop of our own: it lets what gRPC leaves behind on a stop come to its end.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="phs-server", daemon=True)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        self.address = self._started.result()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = None
        try:
            server = Server(self._settings)
            await server.start()
        except BaseException as error:
            if server is not None:
                await server.stop()
            self._started.set_exception(error)
            return
        self._started.set_result(server.address)
        await self._stop.wait()
        await server.stop()


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains; a second signal ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    server = Server(settings)
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
        log.info("draining for up to %g s", settings.drain_seconds)
    finally:
        starting.cancel()
        stopping.cancel()
        await server.stop()
    log.info("stopped")


def run(settings: Settings) -> int:
    """Serves in the foreground; returns the process's exit status."""
    logs.configure(settings.log_level, settings.log_format)
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
    leave(run(parse(arguments)))


def leave(status: int) -> NoReturn:
    """Ends the process at once: a thread that still loads the model would be stopped inside C++, which aborts."""
    logging.shutdown()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(status)
