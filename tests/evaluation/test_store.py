"""The cache: nothing is asked twice, a killed run loses one batch at most, and what differs has another key."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import ImageError, InvalidInput, PhsError
from phs_milvus.contract.types import Focus, MaskRuns
from phs_milvus.evaluation import Bench, QuerySet, Store, WholeImage, evaluate, load, object_queries
from phs_milvus.evaluation.edits import CROP, MASK_BLACK
from phs_milvus.evaluation.store import BATCH, Look, _sent

SCRIPT = """
import sys
from phs_milvus.client.encoder import Encoder
from phs_milvus.evaluation import Bench, Store, load, object_queries
address, labels, cache = sys.argv[1:]
with Encoder(address) as encoder, Store(cache, encoder.info) as store:
    bench = Bench(encoder, load(labels), store)
    queries = bench.queries(object_queries(bench.dataset), "box")
    print("ready", flush=True)
    from phs_milvus.contract.types import Focus
    for step in range(100):
        bench.look(queries, focus=Focus(attention_shift=0, zoom=1 + step / 100))
"""


def rows(store: Path) -> int:
    import sqlite3

    return sqlite3.connect(store).execute("SELECT count(*) FROM seen").fetchone()[0]


def test_edited_photos_are_sent_as_they_are_in_a_format_that_fits(
    make_images: Callable[..., list[Path]], tmp_path: Path
) -> None:
    (path,) = make_images(tmp_path / "photo", 1)
    mask = MaskRuns(160, 120, np.array([0, 160 * 120], np.uint32))
    look = Look(path, "digest", mask=mask, edit=MASK_BLACK)
    formats = {}
    for limit in (2**25, 100_000):
        ((sent, _),) = _sent([[(b"key", look)]], limit)
        assert isinstance(sent, bytes)
        with Image.open(io.BytesIO(sent)) as image, Image.open(path) as photo:
            formats[limit] = image.format
            # All of it is inside the mask, so nothing is blackened.
            assert np.array_equal(np.asarray(image), np.asarray(photo.convert("RGB")))
    assert formats == {2**25: "BMP", 100_000: "PNG"}


def test_a_second_run_asks_the_server_nothing(labels: Path, vit_encoder: Encoder, tmp_path: Path) -> None:
    outcomes = []
    for encoder in (vit_encoder, Encoder("127.0.0.1:1", timeout=0.2)):
        with Store(tmp_path, vit_encoder.info) as store:
            # The address of the second has no server: whatever is asked of it would fail.
            bench = Bench(vit_encoder, load(labels), store)
            bench.encoder = encoder
            queries = bench.queries(object_queries(bench.dataset), "box")
            seen = (
                bench.states,
                bench.attention,
                bench.look(queries, focus=Focus(attention_shift=1))[0],
                bench.look(queries, edit=CROP)[0],
            )
            outcomes.append([part.tobytes() for part in seen])
    assert outcomes[0] == outcomes[1]


def test_a_killed_run_loses_one_batch_at_most(labels: Path, vit_encoder: Encoder, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, vit_encoder.address, str(labels), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (file,) = tmp_path.glob("*.sqlite")
    deadline = time.monotonic() + 60
    while rows(file) < 2 * BATCH and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept = rows(file)
    # Commits come every BATCH items, or sooner: at most one batch is not on disk.
    assert kept >= 2 * BATCH
    with Store(tmp_path, vit_encoder.info) as store:
        bench = Bench(vit_encoder, load(labels), store)
        queries = bench.queries(object_queries(bench.dataset), "box")
        states, _ = bench.look(queries, focus=Focus(attention_shift=0, zoom=1.0))
        assert rows(file) == kept
        fresh = list(vit_encoder.encode_many([bench.dataset.images[i].path for i in queries.images]))
        assert len(fresh) == len(states)


def test_what_is_asked_decides_the_key(queries: QuerySet) -> None:
    look = Look(Path("a"), "digest")
    masked = replace(look, mask=queries.masks[0])
    looks = [
        look,
        replace(look, digest="other"),
        masked,
        replace(look, mask=queries.masks[1]),
        replace(masked, edit=CROP),
        replace(masked, edit=MASK_BLACK),
        *(replace(masked, focus=focus) for focus in (Focus(attention_shift=1), Focus(zoom=1), Focus(fovea=0.2))),
        replace(look, mask=MaskRuns(3, 2, np.array([1, 5], np.uint32))),
        replace(look, mask=MaskRuns(2, 3, np.array([1, 5], np.uint32))),
    ]
    assert len({look.key for look in looks}) == len(looks)
    # Head counts are a matter of the readout; where the file lies is not either.
    assert replace(masked, focus=Focus.paper(2)).key == masked.key
    assert replace(look, path=Path("b")).key == look.key
    whole, fractional = (replace(masked, focus=Focus(attention_shift=one, zoom=2 * one)) for one in (1, 1.0))
    assert whole.key == fractional.key


def test_models_do_not_share_answers(vit_encoder: Encoder, tmp_path: Path) -> None:
    other = replace(vit_encoder.info, fingerprint="0" * 64)
    with Store(tmp_path, vit_encoder.info) as ours, Store(tmp_path, other) as theirs:
        assert ours.path != theirs.path


def test_an_image_that_is_gone_is_named(labels: Path, vit_encoder: Encoder, tmp_path: Path) -> None:
    with Store(tmp_path, vit_encoder.info) as store:
        with pytest.raises(ImageError, match=r"none\.png"):
            store.see([Look(labels.parent / "none.png", "x")], vit_encoder)
        with pytest.raises(PhsError):
            store.see([Look(labels, "y")], vit_encoder)


def test_blocks_do_not_change_anything(bench: Bench, queries: QuerySet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(WholeImage(), bench, queries)
    monkeypatch.setattr("phs_milvus.evaluation.measures._BLOCK", 7)
    parts = evaluate(WholeImage(), bench, queries)
    for name, values in whole.values.items():
        assert np.allclose(values, parts.values[name])


def test_a_cache_that_cannot_be_used_says_so(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file", "a file is where a folder"), (Path("/proc/nowhere"), "No such file")):
        with pytest.raises(InvalidInput, match=f"cannot keep encoded images in .*: {reason}") as caught:
            Store(folder, encoder.info)
        assert caught.value.field == "cache"
    with Store(tmp_path, encoder.info) as store:
        path = store.path
    for made in tmp_path.glob("*.sqlite*"):
        made.unlink()
    path.write_bytes(b"some other file" * 100)
    with pytest.raises(InvalidInput, match="file is not a database; name another folder"):
        Store(tmp_path, encoder.info)
