"""Metrics over HTTP and logs as JSON."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import PortTaken
from phs_server.app import ServerThread
from tests.server.edge.support import eventually, failure, items, jpeg, metrics, open_channel, settings, slow_png
from tests.servers import ServerProcess, free_port


def test_metrics_count_what_happened(tiny_model: Path) -> None:
    port = free_port()
    with ServerThread(settings(tiny_model, metrics_port=port)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: stub.Encode(pb.EncodeRequest(image=jpeg(seed)), timeout=20), range(8)))
        list(stub.EncodeStream(items([jpeg(), b"broken", b"broken"]), timeout=20))
        failure(lambda: stub.Encode(pb.EncodeRequest(), timeout=20))
        slow, cancelled = slow_png(), 'phs_errors_total{code="CANCELLED",method="Encode"}'
        call = stub.Encode.future(pb.EncodeRequest(image=slow), timeout=20)
        eventually(lambda: metrics(port)["phs_in_flight_bytes"] >= len(slow))
        call.cancel()
        eventually(lambda: cancelled in metrics(port))
        values = metrics(port)
        assert values["phs_images_served_total"] == 9
        assert values['phs_errors_total{code="INVALID_ARGUMENT",method="EncodeStream"}'] == 2
        assert values['phs_errors_total{code="INVALID_ARGUMENT",method="Encode"}'] == 1
        assert values[cancelled] == 1
        for stage in ("decode", "queue", "compute"):
            assert values[f"phs_{stage}_seconds_count"] == 9
        assert values["phs_batch_images_sum"] == 9
        assert values["phs_ready"] == 1
        for queue in ("decode", "encode", "rerank"):
            assert values[f'phs_queue_depth{{queue="{queue}"}}'] == 0
        assert values["phs_bulk_waiting"] == values["phs_in_flight_images"] == 0
        assert values["phs_in_flight_bytes"] == 0 and values["process_resident_memory_bytes"] > 1e7
        with (
            pytest.raises(PortTaken, match=f"metrics on 127.0.0.1:{port}"),
            ServerThread(settings(tiny_model, metrics_port=port)),
        ):
            pass


def test_json_logs_are_one_object_per_line(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, log_format="json") as server:
        assert server.terminate() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert any(line["message"].startswith("serving ") for line in lines)
    assert lines[-1]["message"] == "stopped"
