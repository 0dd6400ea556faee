"""Looks at one picture share what the model does for all of them, counted by the server itself, and are what they would
be one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.types import Focus, MaskRuns
from phs_milvus.contract.wire import MOST_PROMPTS
from phs_milvus.evaluation import Average, Bench, Edited, Focused, QuerySet, Store, load, object_queries
from phs_milvus.evaluation.edits import CROP
from phs_milvus.evaluation.experiments.table1 import methods
from phs_milvus.evaluation.methods import asks_of
from phs_milvus.evaluation.store import Look
from tests.server.edge.support import metrics
from tests.servers import free_port

Views = Callable[[], int]
ROIS, ZOOMS = (0.0, 0.5, 1.0), (0.0, 1.25, 2.0)


@pytest.fixture(scope="module")
def counted(vit_model: Path) -> Iterator[tuple[Encoder, Views]]:
    """A server, and how many images its model has seen so far."""
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    port = free_port()
    settings = Settings(model=str(vit_model), port=0, precision="float32", drain_seconds=2, metrics_port=port)
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        yield encoder, lambda: int(metrics(port)["phs_batch_images_sum"])


def looks_at(path: Path, digest: str, masks: tuple[MaskRuns, ...]) -> list[Look]:
    """Without a mask, and each mask under every roi and zoom."""
    focuses = [Focus(1, attention_shift=roi, zoom=zoom) for roi in ROIS for zoom in ZOOMS]
    return [Look(path, digest), *(Look(path, digest, mask, focus=focus) for focus in focuses for mask in masks)]


def boxes(width: int, height: int, count: int) -> tuple[MaskRuns, ...]:
    masks = np.zeros((count, height, width), np.bool_)
    for number, mask in enumerate(masks):
        mask[number % (height - 9) : number % (height - 9) + 8, number // (height - 9) : 20] = True
    return tuple(map(MaskRuns.from_array, masks))


def test_a_picture_is_one_image_to_the_model_and_so_is_each_crop(
    counted: tuple[Encoder, Views], make_images: Callable[..., list[Path]], tmp_path: Path
) -> None:
    encoder, views = counted
    (path,) = make_images(tmp_path / "photo", 1)
    masks = boxes(160, 120, 3)
    looks = looks_at(path, "digest", masks)
    with Store(tmp_path / "together", encoder.info) as store:
        before = views()
        together = store.see(looks, encoder)
        assert views() - before == 1 + len(masks) * (len(ZOOMS) - 1)
        assert views() - before < len(looks) / 3
    with Store(tmp_path / "alone", encoder.info) as store:
        alone = [store.see([look], encoder)[0] for look in looks]
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(one.state, other.state, atol=4e-3)
        assert np.allclose(one.scores, other.scores, atol=1e-5)
        assert (one.attention is None) == (other.attention is None)
    assert [seen.attention is not None for seen in together] == [True] + [False] * (len(looks) - 1)
    assert np.allclose(together[0].attention, alone[0].attention, atol=1e-5)


def test_what_is_too_much_for_one_request_makes_several(
    counted: tuple[Encoder, Views], make_images: Callable[..., list[Path]], tmp_path: Path
) -> None:
    encoder, views = counted
    (path,) = make_images(tmp_path / "photo", 1)
    masks = boxes(160, 120, MOST_PROMPTS + 1)
    small = replace(encoder.info, limits=replace(encoder.info.limits, message_bytes=16384))
    noise = np.random.default_rng(0).random((3, 800, 800)) < 0.5  # 320,000 runs each
    large = tmp_path / "large.png"
    Image.new("RGB", (800, 800)).save(large)
    cases = (
        (path, masks, encoder.info, 2),
        (path, masks, small, 6),
        (large, tuple(map(MaskRuns.from_array, noise)), encoder.info, 3),
    )
    for number, (photo, some, info, requests) in enumerate(cases):
        looks = [Look(photo, "digest", mask, focus=Focus(attention_shift=1)) for mask in some]
        with Store(tmp_path / str(number), info) as store:
            before = views()
            assert len(store.see(looks, encoder)) == len(some)
            assert views() - before == requests


def test_table1_asks_before_it_scores(counted: tuple[Encoder, Views], labels: Path, tmp_path: Path) -> None:
    encoder, views = counted
    with Store(tmp_path, encoder.info) as store:
        bench = Bench(encoder, load(labels), store)
        queries = bench.queries(object_queries(bench.dataset), "box")
        chosen = methods(encoder.info.heads, encoder.info.default_heads)
        assert bench.embeddings.shape == (len(bench.dataset.images), encoder.info.embedding_size)
        before = views()
        bench.look_ahead(queries, asks_of(chosen))
        # Six edits, FA, and zooms 1.25 and 2 of each query; every roi on the whole picture together.
        asked = views() - before
        assert asked == 9 * len(queries) + len(set(queries.images.tolist()))
        for method in chosen:
            assert method.scores(bench, queries).shape == (len(queries), len(bench.dataset.images))
        assert views() - before == asked
        bench.close()


def test_an_average_asks_for_its_parts_once_for_all_head_counts() -> None:
    scales, roi = Focus(1, attention_shift=1, zoom=(0.0, 2.0)), Focus("all", attention_shift=1)
    average = Average([Edited(CROP), Focused(scales), Focused(roi), Focused(Focus.paper(1))])
    asks = asks_of([average, Edited(CROP)])
    assert [(ask.edit, ask.focus.zoom, ask.focus.attention_shift) for ask in asks[1:]] == [(None, 0, 1), (None, 2, 1)]
    assert asks[0].edit is CROP


def test_bad_pictures_fail_with_all_their_looks(
    counted: tuple[Encoder, Views], make_images: Callable[..., list[Path]], tmp_path: Path
) -> None:
    encoder, _ = counted
    good, bad = make_images(tmp_path / "photos", 2)
    bad.write_bytes(bad.read_bytes()[:2000])
    masks = boxes(160, 120, 2)
    asked = {path: looks_at(path, path.name, masks) for path in (bad, good)}
    with Store(tmp_path, encoder.info) as store:
        problems = store.unusable([*asked[bad], *asked[good]], encoder)
        count = len(asked[bad])
        assert all(isinstance(problem, ImageError) for problem in problems[:count])
        assert problems[count:] == [None] * count
        with pytest.raises(ImageError, match=bad.name):
            store.fill(asked[bad], encoder)


def test_readout_is_the_server_s(bench: Bench, queries: QuerySet) -> None:
    info, states = bench.info, bench.states[queries.images]
    weights = np.random.default_rng(0).uniform(0, 2, (len(states), info.heads)).astype(np.float32)
    axes = np.eye(info.embedding_size, dtype=np.float32)
    one_by_one = [
        bench.encoder.rerank(axes, np.tile(row, (len(axes), 1)), state[None])[:, 0]
        for state, row in zip(states, weights, strict=True)
    ]
    assert np.allclose(bench.readout(states, weights), one_by_one, atol=1e-5)
