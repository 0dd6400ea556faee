"""Metrics and traces of searches, what they cost when off, and the dashboard that shows them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from phs_milvus import Box, Encoder, FocusedCollection, FocusedSearch, InvalidInput, connect, ingest_folder, telemetry
from phs_milvus.milvus.connection import close
from phs_server.app import ServerThread
from tests.server.edge.support import metrics, settings
from tests.servers import free_port
from tests.test_architecture import BLOCK, REPO, run_python

SPANS = InMemorySpanExporter()


@pytest.fixture(scope="module")
def provider() -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SPANS))
    otel.set_tracer_provider(provider)


@pytest.fixture
def on() -> Iterator[CollectorRegistry]:
    yield CollectorRegistry()
    telemetry.off()


def test_a_search_is_counted_and_traced_to_the_server(
    tiny_model: Path,
    make_images: object,
    tmp_path: Path,
    provider: None,
    on: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos = make_images(tmp_path / "photos", 12)  # type: ignore[operator]
    client = connect(str(tmp_path / "phs.db"))
    port = free_port()
    with (
        ServerThread(settings(tiny_model, metrics_port=port)) as server,
        Encoder(server.address) as encoder,
        caplog.at_level(logging.DEBUG, "phs_server.edge.calls"),
    ):
        collection = FocusedCollection.create(client, "photos", encoder.info)
        ingest_folder(photos[0].parent, collection, encoder, progress=False)
        search = FocusedSearch(collection, encoder)
        search.search(photos[0], Box(0, 0, 50, 50))
        telemetry.count(on)
        telemetry.trace()
        search.search(photos[0], Box(0, 0, 50, 50), limit=3, localize=3)
        with pytest.raises(InvalidInput):
            search.search(photos[0], limit=0)
        counted = {sample.name for family in on.collect() for sample in family.samples}
        served = {name.partition("{")[0] for name in metrics(port)}
    close(client)

    for stage in ("search", "encode", "milvus", "rerank", "locate"):
        assert on.get_sample_value("phs_client_stage_seconds_count", {"stage": stage}) >= 1
        assert on.get_sample_value("phs_client_in_flight", {"stage": stage}) == 0
    assert on.get_sample_value("phs_client_candidates_sum") == 12
    assert on.get_sample_value("phs_client_errors_total", {"stage": "search", "kind": "InvalidInput"}) == 1

    spans = {span.name: span for span in SPANS.get_finished_spans() if span.status.is_unset}
    assert {"phs search", "phs encode", "phs milvus", "phs rerank", "phs locate"} <= spans.keys()
    parent = spans["phs search"].context
    assert all(spans[f"phs {name}"].context.trace_id == parent.trace_id for name in ("encode", "milvus", "rerank"))
    said = [record.getMessage() for record in caplog.records]  # of a stream, when the client ends it
    for method in ("Encode", "Rerank", "Locate"):
        assert any(line.startswith(method) and f"(trace {parent.trace_id:032x})" in line for line in said), said

    dashboard = (REPO / "docker/grafana/phs.json").read_text()
    expressions = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"\b(?:phs|process)_\w+", text)}
    assert len(named) > 15
    assert named <= counted | served, named - counted - served


def test_a_header_that_is_no_trace_is_left_out() -> None:
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert telemetry.trace_of([("x", "y"), ("traceparent", good)]) == good.split("-")[1]
    for wrong in ("", "00-\n-1-01", "00-" + "Z" * 32 + "-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"):
        assert telemetry.trace_of([("traceparent", wrong)]) == ""
    assert telemetry.trace_of(None) == ""


def test_switched_off_nothing_is_imported() -> None:
    code = BLOCK.format(names=["prometheus_client", "opentelemetry"]) + (
        "from phs_milvus import FocusedSearch, Encoder, telemetry\n"
        "assert telemetry.staged('x')(lambda: 3)() == 3 and telemetry.with_trace(()) == ()\n"
        "try: telemetry.count()\nexcept ImportError: print('said so')\n"
    )
    done = run_python(code)
    assert done.stdout.strip() == "said so", done.stderr
