"""Prometheus metrics, and the port they are read from."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from phs_milvus.contract.errors import PortTaken
from phs_milvus.contract.types import ModelInfo, Timings

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What one server counts. Each has a registry of its own, so that several may live in a process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._gauges: dict[str, Gauge] = {}
        self._images = Counter("phs_images_served", "Images encoded and answered", registry=registry)
        self._errors = Counter(
            "phs_errors",
            "Calls and stream items that failed, by method and gRPC code",
            ["method", "code"],
            registry=registry,
        )
        self._batch = Histogram("phs_batch_images", "Images in a batch", buckets=_SIZES, registry=registry)
        self._stages = {
            name: Histogram(f"phs_{name}_seconds", text, buckets=_SECONDS, registry=registry)
            for name, text in (
                ("decode", "Decoding and resizing one image"),
                ("queue", "Waiting for a decode thread, and then for a batch"),
                ("compute", "The model, for the whole batch an image was in"),
            )
        }
        self._model = Gauge("phs_model_info", "Always 1", ["model_id", "fingerprint", "precision"], registry=registry)

    def gauge(self, name: str, text: str, read: Callable[[], float], **labels: str) -> None:
        """Adds a value that is read when asked for; once for each value of its labels."""
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = Gauge(name, text, list(labels), registry=self.registry)
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def served(self, timings: Timings | None) -> None:
        """One image was answered."""
        self._images.inc()
        if timings is not None:
            for name, stage in self._stages.items():
                stage.observe(getattr(timings, f"{name}_ms") / 1000)

    def failed(self, method: str, code: str) -> None:
        """A call or a stream item was answered with an error; `code` is the name of a grpc.StatusCode."""
        self._errors.labels(method, code).inc()

    def batch(self, size: int) -> None:
        """A batch of `size` images is run."""
        self._batch.observe(size)

    def model(self, info: ModelInfo) -> None:
        self._model.labels(info.model_id, info.fingerprint, info.precision).set(1)

    def listen(self, host: str, port: int) -> Callable[[], None]:
        """Serves http://host:port/metrics from a thread; returns what stops it.

        Raises:
            PortTaken: the port is taken.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise PortTaken(f"cannot serve metrics on {host}:{port}: {error.strerror or error}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
