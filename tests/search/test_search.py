"""Two-stage search through a real server and a real Milvus: exactness, order, and every way it must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phs_milvus import Box, Encoder, Focus, FocusedCollection, FocusedSearch, Outputs, Point, Query, Row, StoredImage
from phs_milvus.contract.errors import CollectionError, ImageError, InvalidInput, ModelMismatch, PromptError, StateError
from phs_milvus.milvus.connection import close, connect
from tests import naive_phs
from tests.checkpoints import save_checkpoint

PROMPT = Box(20, 20, 90, 100)


@pytest.fixture(scope="module")
def client(milvus_uri: str) -> Iterator[object]:
    client = connect(milvus_uri)
    yield client
    close(client)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: object) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 60)


def fill(collection: FocusedCollection, encoder: Encoder, paths: list[Path]) -> None:
    encodings = encoder.encode_many(paths, outputs=Outputs(state=True))
    rows = [
        Row(path.name, encoding.embedding, encoding.state, "digest", {"path": str(path), "number": number})
        for number, (path, encoding) in enumerate(zip(paths, encodings, strict=True))
    ]
    collection.insert(rows)


@pytest.fixture(scope="module")
def collection(client: object, encoder: Encoder, images: list[Path]) -> FocusedCollection:
    collection = FocusedCollection.create(client, "images", encoder.info, overwrite=True, state_format="float16")
    fill(collection, encoder, images)
    return collection


@pytest.fixture
def search(collection: FocusedCollection, encoder: Encoder) -> FocusedSearch:
    return FocusedSearch(collection, encoder)


def exhaustive(encoder: Encoder, image: Path, paths: list[Path]) -> dict[str, float]:
    """Query-DB scores of all images, without Milvus."""
    query = encoder.encode(image, PROMPT, outputs=Outputs(head_weights=True))
    states = np.stack([encoder.encode(path, outputs=Outputs(state=True)).state for path in paths])
    scores = encoder.rerank(query.embedding[None], query.head_weights[None], states)[0]
    return {path.name: float(score) for path, score in zip(paths, scores, strict=True)}


def test_all_candidates_give_the_exhaustive_order(search: FocusedSearch, encoder: Encoder, images: list[Path]) -> None:
    expected = exhaustive(encoder, images[7], images)
    result = search.search(images[7], PROMPT, limit=60, candidates=60, score="query_db")
    assert {hit.id: hit.score for hit in result} == pytest.approx(expected, abs=1e-6)
    assert [hit.id for hit in result] == sorted(expected, key=lambda name: -expected[name])
    # The prompt changes the order, or this would show nothing.
    assert [hit.id for hit in result] != [hit.id for hit in search.search(images[7], limit=60, candidates=60)]


def test_hits_keep_both_stages(search: FocusedSearch, images: list[Path]) -> None:
    result = search.search(images[3], PROMPT, limit=5, candidates=40, output_fields=["number"])
    ann = search.search(images[3], PROMPT, limit=40, rerank=False)
    by_id = {hit.id: hit for hit in ann}
    assert len(result) == 5
    for rank, hit in enumerate(result, start=1):
        assert (hit.ann_rank, hit.ann_score) == (by_id[hit.id].ann_rank, pytest.approx(by_id[hit.id].ann_score))
        assert hit.score == hit.blend_score == pytest.approx((hit.ann_score + hit.query_db_score) / 2)
        assert hit.score >= (result[rank].score if rank < 5 else -1)
        assert hit.id == f"image-{hit.fields['number']:04d}.jpg"
    assert all(hit.query_db_score is None and hit.score == hit.ann_score for hit in ann)


def test_the_image_itself_comes_first_and_result_converts(search: FocusedSearch, images: list[Path]) -> None:
    result = search.search(images[0], limit=3)
    assert result[0].id == images[0].name
    assert result[0].score == pytest.approx(1, abs=1e-3)
    rows = result.rows()
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert {"id", "score", "ann_score", "ann_rank", "query_db_score", "query_db_rank", "blend_score"} <= set(rows[0])
    assert images[0].name in str(result) and "ANN rank" in str(result)
    fields = {"score": 4.5, "rank": 99, "id": "SKU", "size": "XL"}
    row = replace(result, hits=[replace(result[0], fields=fields)]).rows()[0]
    assert (row["rank"], row["score"], row["id"], row["size"]) == (1, result[0].score, result[0].id, "XL")


def test_many_queries_are_each_as_alone(search: FocusedSearch, images: list[Path]) -> None:
    queries = [Query(images[1], PROMPT), Query(images[2]), Query(StoredImage(images[3].name), Point(80, 60))]
    together = search.search_many(queries, limit=7, candidates=30)
    for query, result in zip(queries, together, strict=True):
        alone = search.search(query.image, query.prompt, limit=7, candidates=30)
        assert [hit.id for hit in result] == [hit.id for hit in alone]
        assert [hit.score for hit in result] == pytest.approx([hit.score for hit in alone], abs=1e-5)
    assert search.search_many([]) == []
    with pytest.raises(PromptError, match=r"query 1: .*640"):
        search.search_many([Query(images[1]), Query(images[2], Box(500, 500, 640, 640))])


def test_filters_apply_to_both_stages(search: FocusedSearch, images: list[Path]) -> None:
    result = search.search(images[0], PROMPT, limit=60, filter="number >= 50", output_fields=["number"])
    assert sorted(hit.fields["number"] for hit in result) == list(range(50, 60))
    with pytest.raises(InvalidInput) as error:
        search.search(images[0], filter="number >>> 5")
    assert error.value.field == "filter"


def test_stored_images_need_a_row_and_a_file(
    collection: FocusedCollection, encoder: Encoder, images: list[Path], tmp_path: Path
) -> None:
    search = FocusedSearch(collection, encoder)
    by_id = search.search(StoredImage(images[5].name), PROMPT, limit=4)
    assert [hit.id for hit in by_id] == [hit.id for hit in search.search(images[5], PROMPT, limit=4)]
    with pytest.raises(InvalidInput, match="no row with id 'nowhere.jpg'"):
        search.search(StoredImage("nowhere.jpg"))
    moved = FocusedSearch(collection, encoder, image_root=tmp_path)
    with pytest.raises(ImageError, match="not found"):
        moved.search(StoredImage(images[5].name))
    with pytest.raises(InvalidInput, match="no row with id '/etc/passwd'"):
        moved.search(StoredImage("/etc/passwd"))


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "a/../../outside.jpg"])
def test_an_id_does_not_lead_out_of_image_root(
    client: object, encoder: Encoder, images: list[Path], tmp_path: Path, name: str
) -> None:
    """Whoever writes to a collection names its rows."""
    collection = FocusedCollection.create(client, "strange", encoder.info, overwrite=True)
    encoding = encoder.encode(images[9], outputs=Outputs(state=True))
    collection.insert(
        [Row(name, encoding.embedding, encoding.state), Row("..a/b.jpg", encoding.embedding, encoding.state)]
    )
    search = FocusedSearch(collection, encoder, image_root=tmp_path)
    with pytest.raises(InvalidInput, match="leads out of image_root"):
        search.file_of(StoredImage(name))
    assert search.file_of(StoredImage("..a/b.jpg")) == tmp_path / "..a/b.jpg"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 20_000}, "limit"),
        ({"limit": 10, "candidates": 9}, "candidates"),
        ({"candidates": 20_000}, "candidates"),
    ],
)
def test_wrong_sizes_are_named(search: FocusedSearch, images: list[Path], options: dict, field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        search.search(images[0], **options)
    assert error.value.field == field


def test_wrong_inputs_are_named(search: FocusedSearch, images: list[Path]) -> None:
    with pytest.raises(ImageError, match="not found"):
        search.search("no-such-file.jpg")
    with pytest.raises(PromptError, match="160x120"):
        search.search(images[0], Box(1000, 1000, 1100, 1100))
    with pytest.raises(PromptError, match="nan"):
        search.search(images[0], Box(0, 0, float("nan"), 10))


def test_another_model_or_image_size_is_refused(
    collection: FocusedCollection, tiny_model: Path, tmp_path: Path
) -> None:
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    other = save_checkpoint("dinov2", tmp_path / "other", seed=1)
    for settings in (Settings(model=str(other), port=0), Settings(model=str(tiny_model), image_size=84, port=0)):
        with ServerThread(settings) as server, Encoder(server.address) as encoder:
            with pytest.raises(ModelMismatch) as error:
                FocusedSearch(collection, encoder)
            assert str(tiny_model) in str(error.value)
            assert settings.model in str(error.value)
            if settings.image_size:
                assert "84" in str(error.value) and "56" in str(error.value)


def test_an_empty_collection_says_so(client: object, encoder: Encoder, images: list[Path]) -> None:
    empty = FocusedCollection.create(client, "empty", encoder.info)
    with pytest.raises(CollectionError, match="'empty' is empty; ingest"):
        FocusedSearch(empty, encoder).search(images[0])


def test_a_collection_without_states_says_so(client: object) -> None:
    client.create_collection("plain", dimension=48)
    with pytest.raises(CollectionError, match="plain"):
        FocusedCollection.open(client, "plain")


def with_a_bad_row(client: object, encoder: Encoder, images: list[Path], state: str) -> FocusedSearch:
    """Three good rows, and one with another state, the picture of images[9]."""
    broken = FocusedCollection.create(client, "broken", encoder.info, overwrite=True)
    fill(broken, encoder, images[:3])
    embedding = encoder.encode(images[9]).embedding
    client.insert("broken", [{"id": "bad.jpg", "embedding": embedding, "phs_state": state, "digest": ""}])
    assert broken.count() == 4  # a server shows a row to searches a moment after it was inserted, or when asked so
    return FocusedSearch(broken, encoder)


def test_a_row_whose_state_is_broken_is_named(client: object, encoder: Encoder, images: list[Path]) -> None:
    search = with_a_bad_row(client, encoder, images, "AAAA")
    with pytest.raises(StateError, match=r"'broken', row 'bad.jpg': expected \d+ characters"):
        search.search(images[0], PROMPT)


@pytest.mark.parametrize("score", ["blend", "query_db"])
def test_a_row_without_a_state_keeps_its_ann_score(
    client: object, encoder: Encoder, images: list[Path], score: str
) -> None:
    result = with_a_bad_row(client, encoder, images, "").search(images[0], PROMPT, score=score)
    assert result.without_state == 1 and len(result) == 4
    (bad,) = [hit for hit in result if hit.id == "bad.jpg"]
    assert bad.score == bad.ann_score and bad.query_db_score is bad.query_db_rank is bad.blend_score is None
    assert sorted(hit.query_db_rank for hit in result if hit is not bad) == [1, 2, 3]
    assert [hit.score for hit in result] == sorted((hit.score for hit in result), reverse=True)
    assert "bad.jpg" in str(result)


def test_nan_is_never_stored(client: object, encoder: Encoder) -> None:
    collection = FocusedCollection.create(client, "finite", encoder.info)
    good = np.full(48, 48**-0.5, np.float32)
    for embedding, state in (
        (np.full(48, np.nan, np.float32), np.zeros((2, 48), np.float16)),
        (good, np.full((2, 48), np.nan, np.float16)),
    ):
        with pytest.raises(InvalidInput):
            collection.insert([Row("a", embedding, state, "", {})])
    assert collection.count() == 0


@torch.no_grad()
def test_query_db_equals_re_encoding_by_hooks_on_real_images(deit: Path, voc: Path, tmp_path: Path) -> None:
    """On 200 photos: scores to 1e-3 and order up to ties, against transformers' own model with heads scaled inside."""
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    paths = sorted((voc / "JPEGImages").glob("*.jpg"))[:200]
    prompt = Box(60, 60, 260, 260)
    settings = Settings(model=str(deit), port=0, precision="float32")
    client = connect(str(tmp_path / "voc.db"))
    try:
        with ServerThread(settings) as server, Encoder(server.address) as encoder:
            collection = FocusedCollection.create(client, "voc", encoder.info, state_format="float16")
            fill(collection, encoder, paths)
            published = {"focus": Focus.paper(), "score": "query_db"}
            result = FocusedSearch(collection, encoder).search(
                paths[11], prompt, limit=200, candidates=200, **published
            )
            weights = torch.from_numpy(result.query.head_weights.copy())
    finally:
        close(client)
    assert sorted(weights.tolist()) == [0, 0, 3]

    original = naive_phs.load_original(deit)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def embed(path: Path) -> torch.Tensor:
        picture = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        pixels = (torch.from_numpy(np.asarray(picture).copy()) / 255 - mean) / std
        with naive_phs.head_weights(original, weights):
            return naive_phs.embedding(original, pixels.permute(2, 0, 1).unsqueeze(0))[0]

    query = embed(paths[11])
    naive = {path.name: float(embed(path) @ query) for path in paths}
    ours = {hit.id: hit.score for hit in result}
    assert ours == pytest.approx(naive, abs=1e-3)
    in_our_order = np.array([naive[hit.id] for hit in result])
    assert (np.diff(in_our_order) < 1e-3).all()
    assert len({hit.id for hit in result}) == 200
