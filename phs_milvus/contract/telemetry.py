"""What a search does, as Prometheus metrics and OpenTelemetry spans, for those who ask for it.

    from phs_milvus import telemetry

    telemetry.count()       # prometheus-client: phs_client_* in its default registry
    telemetry.trace()       # opentelemetry-api: a span for each stage; servers are told which trace a call belongs to

Until one of them is called neither package is imported, and a stage costs one comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")
Pairs = tuple[tuple[str, str], ...]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 16_384)
_HEADER = "traceparent"

_metrics: _Metrics | None = None
_tracer: Any = None


def count(registry: Any = None) -> None:
    """Counts every stage of this process's searches from now on.

    Args:
        registry: a prometheus_client.CollectorRegistry; None: the default one. Serving it is the caller's, as with
            prometheus_client.start_http_server.

    Raises:
        ImportError: prometheus-client is not installed.
    """
    global _metrics
    _metrics = _Metrics(registry)


def trace() -> None:
    """Makes a span for every stage from now on, with the tracer provider that the program has set.

    Raises:
        ImportError: opentelemetry-api is not installed.
    """
    global _tracer
    from opentelemetry import trace as api

    _tracer = api.get_tracer("phs_milvus")


def off() -> None:
    """Ends both."""
    global _metrics, _tracer
    _metrics = _tracer = None


def staged(
    name: str, candidates: Callable[[Any], Iterable[int]] | None = None
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Makes a function a stage: its time, its errors by kind, its calls in progress, and a span "phs NAME".

    Args:
        candidates: the numbers of candidates in what the function returns.
    """

    def around(function: Callable[P, Result]) -> Callable[P, Result]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            if _metrics is None and _tracer is None:
                return function(*args, **kwargs)
            metrics = _metrics
            with _observed(name):
                result = function(*args, **kwargs)
            if metrics is not None and candidates is not None:
                for size in candidates(result):
                    metrics.candidates.observe(size)
            return result

        return call

    return around


def with_trace(metadata: Pairs) -> Pairs:
    """A call's gRPC metadata, and the trace that it belongs to as W3C's `traceparent`, where there is one."""
    if _tracer is None:
        return metadata
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return (*metadata, *carrier.items())


def trace_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The id of the trace that a call's metadata name, 32 hexadecimal digits; "" where they name none."""
    for key, value in metadata or ():
        if key == _HEADER and isinstance(value, str):
            parts = value.split("-")
            if len(parts) >= 4 and len(parts[1]) == 32 and set(parts[1]) <= set("0123456789abcdef"):
                return parts[1]
    return ""


class _Metrics:
    def __init__(self, registry: Any) -> None:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        where = {"registry": REGISTRY if registry is None else registry}
        self.seconds = Histogram("phs_client_stage_seconds", "Stages of a search", ["stage"], buckets=_SECONDS, **where)
        self.errors = Counter("phs_client_errors", "Stages that failed", ["stage", "kind"], **where)
        self.in_flight = Gauge("phs_client_in_flight", "Stages in progress", ["stage"], **where)
        self.candidates = Histogram(
            "phs_client_candidates", "Candidates that stage one found for a query", buckets=_SIZES, **where
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self.in_flight.labels(name).track_inprogress(), self.seconds.labels(name).time():
            try:
                yield
            except BaseException as error:
                self.errors.labels(name, type(error).__name__).inc()
                raise


@contextmanager
def _observed(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        contexts: list[AbstractContextManager[Any]] = []
        if _tracer is not None:
            contexts.append(_tracer.start_as_current_span(f"phs {name}"))
        if _metrics is not None:
            contexts.append(_metrics.stage(name))
        for context in contexts:
            stack.enter_context(context)
        yield
