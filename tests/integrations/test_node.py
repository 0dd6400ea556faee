"""The client in Node, which knows the contract from its .proto alone, against a real server and our own search."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from phs_milvus import Box, Encoder, FocusedSearch
from phs_milvus.pointing.prompts import to_runs
from tests.integrations.support import expected, query
from tests.servers import REPO

pytestmark = pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="no node and npm here")


def run(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with exactly the packages of its lock file."""
    folder = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(REPO / "examples/node", folder, ignore=shutil.ignore_patterns("node_modules"))
    done = run(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    if done.returncode and re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT", done.stderr):
        pytest.skip(f"npm reaches no registry: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def search_with(node: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(node, "node", "search.mjs", *arguments, PHS_PROTO=str(REPO / "proto/phs/v1/encoder.proto"))


def test_it_ranks_as_our_search_does_with_bad_pictures_among_good_ones(
    node: Path, address: str, search: FocusedSearch, photos: list[Path], tmp_path: Path
) -> None:
    text, cut, empty = tmp_path / "notes.jpg", tmp_path / "cut.jpg", tmp_path / "empty.jpg"
    text.write_text("no picture")
    cut.write_bytes(photos[0].read_bytes()[:300])
    empty.write_bytes(b"")
    candidates = [text, *photos[:9], cut, *photos[9:], empty]
    done = search_with(node, address, photos[3], "20,10,90,70", *candidates)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    ids, scores = expected(search, query(photos))
    assert [Path(hit["path"]).name for hit in answer["hits"]] == ids
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([scores[name] for name in ids], abs=2e-4)
    assert set(answer["failed"]) == {str(text), str(cut), str(empty)}
    assert all(error["code"] == 3 and error["message"].startswith("image") for error in answer["failed"].values())


@pytest.mark.parametrize(
    "box",
    [(20, 10, 90, 70), (0, 0, 160, 120), (0, 5, 160, 9), (150.5, 100, 999, 999), (-3, -3, 1, 120), (159, 0, 160, 1)],
)
def test_boxes_become_the_runs_that_our_client_makes(node: Path, box: tuple[float, ...]) -> None:
    script = f"import('./phs.mjs').then(p => console.log(JSON.stringify(p.boxToMask(160, 120, {list(box)}))))"
    done = run(node, "node", "-e", script, PHS_PROTO=str(REPO / "proto/phs/v1/encoder.proto"))
    assert done.returncode == 0, done.stderr
    ours = to_runs(Box(*box), 160, 120)
    assert ours is not None and json.loads(done.stdout) == {"width": 160, "height": 120, "runs": ours.runs.tolist()}


def test_what_fails_is_one_line(node: Path, address: str, photos: list[Path]) -> None:
    for arguments, text in (
        ((address, photos[3], "500,500,600,600", photos[0]), "the box lies outside the 160x120 image"),
        ((address, REPO / "Makefile", "1,2,3,4", photos[0]), "gRPC status 3: image: "),
        ((address, photos[3]), "usage: node search.mjs"),
    ):
        done = search_with(node, *arguments)
        assert done.returncode in (1, 2) and text in done.stderr and len(done.stderr.splitlines()) == 1
        assert done.stdout == ""


def test_a_picture_is_sent_once(node: Path, encoder: Encoder, address: str, photos: list[Path]) -> None:
    """The second call of a picture is by its digest, which the server says it holds, and gives what bytes give."""
    script = (
        "import('./phs.mjs').then(async ({ Encoder, numbers }) => {"
        f"const encoder = new Encoder('{address}'); const image = (await import('fs')).readFileSync('{photos[7]}');"
        "const calls = []; const call = encoder.call.bind(encoder);"
        "encoder.call = (method, request) => {"
        "  calls.push(request.image ? 'image' : 'digest'); return call(method, request); };"
        "await encoder.encode(image, {}); const answer = await encoder.encode(image, {});"
        "console.log(JSON.stringify({ calls, embedding: [...numbers(answer.embedding)] })); encoder.close(); })"
    )
    done = run(node, "node", "-e", script, PHS_PROTO=str(REPO / "proto/phs/v1/encoder.proto"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["calls"] == ["digest", "image", "digest"]
    assert np.dot(answer["embedding"], encoder.encode(photos[7]).embedding) == pytest.approx(1, abs=1e-4)
