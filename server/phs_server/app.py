"""Wiring: one gRPC server with the focus service and health; loading, watching, draining."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import grpc

from phs_milvus.contract.errors import InvalidInput, PortTaken
from phs_milvus.contract.tokens import Tokens
from phs_server.config import Settings
from phs_server.edge import health, reflection, supervisor
from phs_server.edge.admission import Admission
from phs_server.edge.callers import Caller
from phs_server.edge.calls import Calls, Serve
from phs_server.edge.connections import Connections
from phs_server.edge.places import Place
from phs_server.edge.probes import ProbeReader
from phs_server.edge.security import server_credentials
from phs_server.edge.service import SERVICE_NAME, FocusEncoderService
from phs_server.flow.pipeline import Pipeline
from phs_server.ops import files, memory
from phs_server.ops.metrics import Metrics

log = logging.getLogger(__name__)

_WATCH_SECONDS = 0.5
_TRIM_SECONDS, _TRIM_SECONDS_BUSY = 2.0, 10.0
# After the last answer has been written: for it, and for the news to health watches, to leave the machine.
_LINGER_SECONDS = 0.2
# For gRPC to notice that its connections have ended.
_CLOSE_SECONDS = 2.0
# Of the connections allowed, those beyond this share are taken from the address that has most.
_FAIR_SHARE = 0.75


class Server:
    """One server on one event loop.

    Attributes:
        address: "host:port" once started, with the port actually bound.
        private_address: where the server answers itself, once started; None without supervision.

    Args:
        brief: it serves one command: what only many pictures need is left to those that need it.
        supervised: somebody will watch whether it answers itself.

    Raises:
        InvalidInput: TLS or token files that cannot be used.
    """

    def __init__(self, settings: Settings, *, brief: bool = False, supervised: bool = False) -> None:
        self.settings = settings
        self._brief = brief
        self._supervised = supervised
        self._private: supervisor.PrivateSocket | None = None
        self.address = ""
        self._metrics = Metrics()
        self._connections = Connections()
        self._max_connections = settings.max_connections or files.connections_allowed()
        self._admission = Admission(settings, self._connections.close)
        self._service = FocusEncoderService(settings, self._metrics, self._admission, self._connections)
        self._health = health.Health(SERVICE_NAME)
        self._credentials = server_credentials(settings)
        tokens = Tokens(Path(settings.token_file)) if settings.token_file else None
        self._calls = Calls(self._admission, self._metrics, tokens)
        self._watching: list[asyncio.Task[None]] = []
        self._stop_metrics: Callable[[], None] | None = None
        self._server = grpc.aio.server(options=_options(settings, self._max_connections))
        self._register()

    @property
    def private_address(self) -> str | None:
        return self._private.address if self._private else None

    async def start(self) -> None:
        """Opens the port, loads and warms up the model, then turns ready.

        Raises:
            PhsError: the port is taken, or the model cannot be served.
        """
        settings = self.settings
        self.address = self._listen()
        if settings.metrics_port:
            self._export_gauges()
            self._stop_metrics = self._metrics.listen(settings.metrics_host, settings.metrics_port)
        await self._server.start()
        self._watching = [asyncio.create_task(work) for work in (self._watch(), self._service.watch())]
        pipeline = await _on_daemon_thread(self._load)
        pipeline.observe_batch = self._metrics.batch
        self._metrics.model(pipeline.info)
        self._service.pipeline = pipeline
        self._health.report(ready=True)
        info = pipeline.info
        log.info(
            "serving %s (%s, %d heads, %d px, %s) on %s",
            *(info.model_id, info.model_type, info.heads, info.image_size, info.precision, self.address),
        )

    async def ended(self) -> None:
        """Returns when gRPC's server has ended, by `stop` or by itself."""
        await self._server.wait_for_termination()

    async def stop(self) -> None:
        """Refuses new requests, finishes accepted ones for up to `drain_seconds`, then closes every connection.

        Only requests are waited for: not connections that say nothing, nor watches, nor half of a handshake.
        """
        for task in self._watching:
            task.cancel()
        self._health.drain()
        self._service.drain()
        stopping = asyncio.ensure_future(self._server.stop(self.settings.drain_seconds))
        finished = asyncio.ensure_future(self._finished())
        await asyncio.wait(
            [stopping, finished], timeout=self.settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        finished.cancel()
        self._connections.close_all()
        if not (await asyncio.wait([stopping], timeout=_CLOSE_SECONDS))[0]:
            log.warning("some connections did not end in time")
        if self._service.pipeline is not None:
            self._service.pipeline.close(timeout=1.0)
        if self._private:
            self._private.close()
        if self._stop_metrics is not None:
            await asyncio.to_thread(self._stop_metrics)

    def _register(self) -> None:
        reader, calls, probes = ProbeReader(), self._calls, self._admission.probes

        def probe(
            name: str, answer: Callable[[bytes, grpc.aio.ServicerContext, Place], Awaitable[None]]
        ) -> grpc.RpcMethodHandler:
            async def serve(context: grpc.aio.ServicerContext, caller: Caller, place: Place) -> None:
                message = await reader.read(context, caller)
                if message is None:
                    raise InvalidInput("the call carries no message", "request")
                await answer(message, context, place)

            return calls.open_to_all(name, probes, serve)

        services: dict[str, dict[str, grpc.RpcMethodHandler]] = {
            SERVICE_NAME: self._service.handlers(calls),
            health.SERVICE_NAME: {
                "Check": probe("Check", self._health.check),
                "Watch": probe("Watch", self._health.watch),
            },
        }
        if self.settings.reflection:
            listing = reflection.Reflection(tuple(services), reader)
            serve: Serve = lambda context, caller, place: listing.serve(context, caller, place)  # noqa: E731
            services[reflection.SERVICE_NAME] = {
                "ServerReflectionInfo": calls.guarded("ServerReflectionInfo", probes, serve)
            }
        for name, handlers in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

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
            raise PortTaken(f"cannot listen on {host}:{port}: is the port taken? ({error})") from error
        if self._credentials is None and host not in ("127.0.0.1", "localhost", "[::1]"):
            log.warning("listening on %s without TLS; see --tls-cert", host)
        if self._supervised:
            self._private = supervisor.listen(self._server)
        self._connections.port = bound
        return f"{host}:{bound}"

    def _load(self) -> Pipeline:
        pipeline = Pipeline(self.settings)
        pipeline.warm_up(single=self._brief)
        return pipeline

    async def _finished(self) -> None:
        await asyncio.sleep(_LINGER_SECONDS)  # also for calls that gRPC has taken and we have not seen yet
        while self._calls.open:
            await self._calls.finished()
            await asyncio.sleep(_LINGER_SECONDS)

    async def _watch(self) -> None:
        """Turns health off when a thread that runs the model dies, and fails what it leaves behind; trims memory; keeps
        connections shared."""
        trimmed = time.monotonic()
        while self._service.pipeline is None or self._service.pipeline.healthy:
            await asyncio.sleep(_WATCH_SECONDS)
            if ended := self._connections.thin_out(int(_FAIR_SHARE * self._max_connections)):
                log.warning("ended %d connections of those addresses that had most", ended)
            # Rarely under load: glibc holds the lock of each of its arenas for the time that it takes.
            if time.monotonic() - trimmed > (_TRIM_SECONDS_BUSY if self._admission.busy else _TRIM_SECONDS):
                trimmed = time.monotonic()
                try:
                    await asyncio.to_thread(memory.trim)
                except Exception:
                    log.exception("freed memory cannot be given back to the system")
        log.critical("a thread that runs the model has died; this server must be restarted")
        self._health.report(ready=False, live=False)
        self._service.give_up()
        await asyncio.to_thread(self._service.pipeline.close, 0)

    def _export_gauges(self) -> None:
        service, admission = self._service, self._admission
        gauge = self._metrics.gauge
        gauge("phs_ready", "Whether the model is loaded and its threads are alive", lambda: _ready(service))
        for queue in ("decode", "encode", "rerank"):
            gauge("phs_queue_depth", "Items in a queue", partial(_queue_depth, service, queue), queue=queue)
        gauge("phs_bulk_waiting", "Bulk items that wait for room", lambda: admission.waiting)
        gauge("phs_calls", "Unary calls in progress", lambda: len(admission.calls))
        gauge("phs_streams", "Bulk streams open", lambda: len(admission.streams))
        gauge("phs_probes", "Health checks, watches and reflections open", lambda: len(admission.probes))
        gauge("phs_in_flight_images", "Images in progress", lambda: admission.images)
        gauge("phs_in_flight_bytes", "Bytes of requests and answers in progress", lambda: admission.bytes_held)


def _ready(service: FocusEncoderService) -> float:
    return service.pipeline is not None and service.pipeline.healthy


def _queue_depth(service: FocusEncoderService, queue: str) -> float:
    return 0 if service.pipeline is None else service.pipeline.queue_depths[queue]


def _options(settings: Settings, max_connections: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_concurrent_streams", settings.max_connection_calls),
        # The next ones are closed. All are counted, also those that have said nothing yet.
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", int(1000 * settings.handshake_seconds)),
        ("grpc.max_connection_idle_ms", int(1000 * settings.idle_seconds)),
        ("grpc.max_connection_age_ms", int(1000 * settings.age_seconds)),
        # Nothing is inflated: a kilobyte would become a megabyte before any code of ours sees it. Bit 0 is "identity".
        ("grpc.compression_enabled_algorithms_bitset", 1),
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

    Args:
        brief: see `Server`.
    """

    def __init__(self, settings: Settings, *, brief: bool = False) -> None:
        self.address = ""
        self._settings, self._brief = settings, brief
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
            server = Server(self._settings, brief=self._brief)
            await server.start()
        except BaseException as error:
            if server is not None:
                await server.stop()
            self._started.set_exception(error)
            return
        self._started.set_result(server.address)
        await self._stop.wait()
        await server.stop()
