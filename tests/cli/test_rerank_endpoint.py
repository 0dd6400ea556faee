"""phs-milvus rerank-endpoint as a process: ready, TLS, and an end by signal."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.search.packed_query import pack_query
from phs_milvus.search.parts import parts_of
from phs_milvus.search.rerank import Reranker
from tests.cli.conftest import Run
from tests.web.support import request


@contextmanager
def endpoint(environment: dict[str, str], *flags: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command, and the line that says that it is ready."""
    command = [sys.executable, "-m", "phs_milvus", "rerank-endpoint", "--port", "0", *map(str, flags)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_and_ends_by_a_signal(
    environment: dict[str, str], photos: list[Path], encoder: Encoder, number: signal.Signals
) -> None:
    query = Reranker(encoder).query(photos[0])
    text = pack_query(parts_of([query]).comparison("query_db"), encoder.info.fingerprint)
    with endpoint(environment) as (process, line):
        assert line.startswith("ready: http://127.0.0.1:") and line.endswith("/rerank\n")
        port = int(line.rpartition(":")[2].partition("/")[0])
        answer = request(port, "/rerank", json.dumps({"query": text, "texts": ["no state"]}))
        assert answer.json == [{"index": 0, "score": -1}]
        process.send_signal(number)
        out, errors = process.communicate(timeout=20)
        assert (process.returncode, out, errors) == (0, "", "")


def test_a_port_in_use_and_settings_that_cannot_be_are_one_line(
    run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    with endpoint(environment) as (_, line):
        port = line.rpartition(":")[2].partition("/")[0]
        taken = run("rerank-endpoint", "--port", port)
    assert taken.returncode == 1 and taken.stderr.startswith(f"phs-milvus: 127.0.0.1:{port} is in use;")
    for flags, said in (
        (["--host", "0.0.0.0"], "host: 0.0.0.0 can be reached by others; pass --token-file FILE, or --no-auth"),
        (["--token-file", "missing"], "token_file: cannot read missing"),
        (["--tls-cert", "server.pem"], "tls_key: is missing"),
        (["--port", "70000"], "port: must be 0 to 65535"),
    ):
        done = run("rerank-endpoint", *flags)
        assert done.returncode == 1 and done.stderr.startswith(f"phs-milvus: {said}"), done.stderr
        assert done.stderr.count("\n") == 1


def test_tls(environment: dict[str, str], tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no openssl command here to make a certificate with")
    with endpoint(environment, "--tls-cert", certificate, "--tls-key", key) as (_, line):
        assert line.startswith("ready: https://127.0.0.1:")
        url = line.split()[1].replace("127.0.0.1", "localhost").replace("/rerank", "/health")
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(url, timeout=20, context=context) as answer:
            assert answer.status == 200
