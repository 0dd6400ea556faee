"""Every method's score matrix on 50 images against slow, plain definitions, run on transformers' own uncut model."""

from __future__ import annotations

import math
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Focus
from phs_milvus.evaluation import Average, Bench, Edited, FixedHeads, Focused, Foveal, QuerySet, TwoStage, WholeImage
from phs_milvus.evaluation import edits as e
from phs_milvus.evaluation.head_weights import head_weights
from phs_milvus.milvus import connection
from phs_milvus.pointing.prompts import Mask
from phs_milvus.search.focused import FocusedSearch, Query
from phs_milvus.search.rerank import Reranker
from tests.evaluation.conftest import COUNT
from tests.naive_phs import last_attention, load_original, plain_vit

HEADS, GRID, SIDE = 4, 4, 64
# float16 states against float32 throughout.
TOLERANCE = 2e-3
ONES = (1.0,) * HEADS


class Plain:
    """The definitions, one image and one head at a time."""

    def __init__(self, model: Path, bench: Bench, queries: QuerySet) -> None:
        self.model = load_original(model)
        self.images = [Image.open(image.path).convert("RGB") for image in bench.dataset.images]
        self.own = queries.images.tolist()
        self.masks = [mask.to_array() for mask in queries.masks]
        self.database = cache(self._database)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        squashed = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255
        normal = (squashed - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)

    def embed(self, image: Image.Image, weights: tuple = ONES, **how: object) -> np.ndarray:
        return plain_vit(self.model, self.pixels(image), weights=torch.tensor(weights), **how).numpy()

    def _database(self, weights: tuple) -> np.ndarray:
        return np.stack([self.embed(image, weights) for image in self.images])

    def shares(self, mask: np.ndarray) -> torch.Tensor:
        """Area shares by repeating every pixel until patches have whole numbers of them."""
        fine = np.kron(mask, np.ones((GRID, GRID)))
        height, width = mask.shape
        return torch.tensor(fine.reshape(GRID, height, GRID, width).mean(axis=(1, 3)).reshape(-1), dtype=torch.float32)

    def weights(
        self, image: Image.Image, mask: np.ndarray, count: int, bottom: bool = False, scaled: bool = True
    ) -> tuple:
        attention = last_attention(self.model, self.pixels(image).unsqueeze(0), 1)[0]
        scores = [float(attention[head] @ self.shares(mask)) for head in range(HEADS)]
        order = sorted(range(HEADS), key=lambda head: (scores[head] if bottom else -scores[head], head))
        kept = order[:count]
        return tuple((HEADS / count if scaled else 1.0) if head in kept else 0.0 for head in range(HEADS))

    def look(self, row: int, zoom: float) -> tuple[Image.Image, np.ndarray]:
        """The query's image and mask, or the crop of both around the mask's box grown by `zoom`."""
        image, mask = self.images[self.own[row]], self.masks[row]
        if not zoom:
            return image, mask
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        region = []
        for low, high, limit in ((columns[0], columns[-1] + 1, image.width), (rows[0], rows[-1] + 1, image.height)):
            centre, half = (low + high) / 2, zoom * (high - low) / 2
            region.append((max(0, math.floor(centre - half)), min(limit, math.ceil(centre + half))))
        (x0, x1), (y0, y1) = region
        return image.crop((x0, y0, x1, y1)), mask[y0:y1, x0:x1]

    def focused(self, count: int, roi: float = 0, zoom: float = 0, db: bool = True, **control: bool) -> np.ndarray:
        result = []
        for row in range(len(self.own)):
            image, mask = self.look(row, zoom)
            weights = self.weights(image, mask, count, **control)
            query = self.embed(image, weights, mask=self.shares(mask), roi=roi)
            result.append(self.database(weights if db else ONES) @ query)
        return np.stack(result)

    def edited(self, edit: object) -> np.ndarray:
        queries = [
            edit(self.images[own], Image.fromarray(mask)) for own, mask in zip(self.own, self.masks, strict=True)
        ]
        return np.stack([self.database(ONES) @ self.embed(query) for query in queries])

    def foveal(self, alpha: float) -> np.ndarray:
        result = []
        for row, own in enumerate(self.own):
            left, top, right, bottom = Image.fromarray(self.masks[row]).getbbox()
            image = self.images[own]
            x, y = (left + right) / 2 / image.width * GRID, (top + bottom) / 2 / image.height * GRID
            gauss = np.array(
                [
                    math.exp(-((i + 0.5 - x) ** 2 + (j + 0.5 - y) ** 2) / (2 * 100**2))
                    for j in range(GRID)
                    for i in range(GRID)
                ]
            )
            scaled = (gauss - gauss.min()) / (gauss.max() - gauss.min())
            query = self.embed(image, bias=torch.tensor(alpha * scaled, dtype=torch.float32))
            result.append(self.database(ONES) @ query)
        return np.stack(result)


@pytest.fixture(scope="module")
def plain(vit_model: Path, bench: Bench, queries: QuerySet) -> Plain:
    return Plain(vit_model, bench, queries)


def check(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape == (50, 50)
    assert np.abs(actual - expected).max() < TOLERANCE
    # Neither all alike, nor so close that another method would pass.
    assert expected.std() > 5 * TOLERANCE


def test_whole_image(bench: Bench, queries: QuerySet, plain: Plain) -> None:
    everything = plain.database(ONES)
    check(WholeImage().scores(bench, queries), everything[queries.images] @ everything.T)


@pytest.mark.parametrize("score", ["ann", "query_db"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_phs(bench: Bench, queries: QuerySet, plain: Plain, count: int, score: str) -> None:
    method = Focused(Focus.paper(count), score)
    check(method.scores(bench, queries), plain.focused(count, db=score == "query_db"))


def test_blends(bench: Bench, queries: QuerySet, plain: Plain) -> None:
    published = (plain.focused(1, db=False) + plain.focused(1)) / 2
    check(Focused(Focus.paper(1), "blend").scores(bench, queries), published)
    default = (plain.focused(HEADS, roi=1, db=False) + plain.focused(1, roi=1)) / 2
    check(Focused(Focus(1), "blend").scores(bench, queries), default)
    assert Focused(Focus(1), "ann").name == "roi 1"
    assert Focused(Focus(1), "blend").name == "roi 1, PHS h=1, ANN h=all, blend"
    assert Focused(Focus(1), "query_db").name == "roi 1, PHS h=1, Query-DB"


def test_controls(bench: Bench, queries: QuerySet, plain: Plain) -> None:
    check(Focused(Focus.paper(2), pick="bottom").scores(bench, queries), plain.focused(2, bottom=True))
    check(Focused(Focus.paper(2), scaled=False).scores(bench, queries), plain.focused(2, scaled=False))
    half = plain.database((0.5,) * HEADS)
    damped = Focused(Focus.paper(2), scaled=False, pick="all").scores(bench, queries)
    check(damped, half[queries.images] @ half.T)
    fixed = (0.0, 2.0, 0.0, 2.0)
    everything = plain.database(fixed)
    check(FixedHeads((1, 3)).scores(bench, queries), everything[queries.images] @ everything.T)
    expected = everything[queries.images] @ plain.database(ONES).T
    check(FixedHeads((1, 3), query_db=False).scores(bench, queries), expected)


def test_random_heads_are_a_draw_per_query_of_the_right_number() -> None:
    scores = np.random.default_rng(0).random((4000, 4)).astype(np.float32)
    weights = head_weights(scores, 3, pick="random")
    assert (np.sort(weights, axis=1) == np.array([0, 4 / 3, 4 / 3, 4 / 3], np.float32)).all()
    assert np.allclose((weights == 0).mean(axis=0), 0.25, atol=0.03)
    # As far from the prompt's choice as chance has it, and the same in another order of queries.
    assert abs((weights.argmin(axis=1) == scores.argmin(axis=1)).mean() - 0.25) < 0.03
    assert np.array_equal(head_weights(scores[::-1], 3, pick="random"), weights[::-1])


def test_ties_go_to_the_lower_head() -> None:
    assert head_weights(np.array([[0.1, 0.3, 0.3, 0.0]], np.float32), 1).tolist() == [[0, 4, 0, 0]]


@pytest.mark.parametrize(("count", "roi", "zoom"), [(4, 1, 0), (1, 0.5, 0), (4, 0, 1), (2, 0, 1.25), (1, 1, 2)])
def test_roi_and_zoom(bench: Bench, queries: QuerySet, plain: Plain, count: int, roi: float, zoom: float) -> None:
    method = Focused(Focus(count, attention_shift=roi, zoom=zoom))
    check(method.scores(bench, queries), plain.focused(count, roi, zoom))


def test_scales_and_averages(bench: Bench, queries: QuerySet, plain: Plain) -> None:
    expected = (plain.focused(2, 1, 0) + plain.focused(2, 1, 1.25)) / 2
    check(Focused(Focus(2, attention_shift=1, zoom=(0.0, 1.25))).scores(bench, queries), expected)
    crop = plain.edited(lambda image, mask: image.crop(mask.getbbox()))
    both = Average([Edited(e.CROP), Focused(Focus(4, attention_shift=1))]).scores(bench, queries)
    check(both, (crop + plain.focused(4, 1, 0)) / 2)


def _fill(colour: tuple[int, int, int]) -> object:
    return lambda image, mask: Image.composite(image, Image.new("RGB", image.size, colour), mask)


def _image_mean(image: Image.Image, mask: Image.Image) -> Image.Image:
    mean = [sum(channel.tobytes()) / (image.width * image.height) for channel in image.split()]
    return Image.composite(image, Image.new("RGB", image.size, tuple(round(value) for value in mean)), mask)


def _blur(image: Image.Image, mask: Image.Image) -> Image.Image:
    return Image.composite(image, image.filter(ImageFilter.GaussianBlur(0.05 * min(image.size))), mask)


def _circle(image: Image.Image, mask: Image.Image) -> Image.Image:
    x0, y0, x1, y1 = mask.getbbox()
    drawn = image.copy()
    width = max(1, round(0.012 * min(image.size)))
    ImageDraw.Draw(drawn).ellipse((x0, y0, x1 - 1, y1 - 1), outline="red", width=width)
    return drawn


@pytest.mark.parametrize(
    ("edit", "definition"),
    [
        (e.CROP, lambda image, mask: image.crop(mask.getbbox())),
        (e.MASK_BLACK, _fill((0, 0, 0))),
        (e.MASK_MEAN, _fill((124, 116, 104))),
        (e.MASK_IMAGE_MEAN, _image_mean),
        (e.BLUR, _blur),
        (e.RED_CIRCLE, _circle),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_edits(bench: Bench, queries: QuerySet, plain: Plain, edit: e.Edit, definition: object) -> None:
    check(Edited(edit).scores(bench, queries), plain.edited(definition))


def test_foveal_attention(bench: Bench, queries: QuerySet, plain: Plain) -> None:
    check(Foveal(4.0).scores(bench, queries), plain.foveal(4.0))
    assert np.abs(plain.foveal(4.0) - plain.foveal(0.0)).max() > 3 * TOLERANCE


@pytest.mark.parametrize("score", ["query_db", "blend"])
@pytest.mark.parametrize("focus", [Focus.paper(2), Focus(1), Focus(1, zoom=(0.0, 2.0))])
def test_two_stages_through_milvus(bench: Bench, queries: QuerySet, focus: Focus, score: str) -> None:
    exhaustive = Focused(focus, score).scores(bench, queries)
    assert np.abs(TwoStage(focus, 50, score).scores(bench, queries) - exhaustive).max() < 1e-5
    stage_one = Focused(focus, "ann").scores(bench, queries)
    few = TwoStage(focus, 12, score).scores(bench, queries)
    for row in range(len(queries)):
        candidates = np.argsort(-stage_one[row], kind="stable")[:12]
        assert set(np.argsort(-few[row], kind="stable")[:12]) == set(candidates)
        assert np.abs(few[row, candidates] - exhaustive[row, candidates]).max() < 1e-5


def test_two_stages_are_what_search_does(bench: Bench, queries: QuerySet) -> None:
    focus = Focus(1, zoom=(0.0, 2.0))
    scores = TwoStage(focus, 12, "blend").scores(bench, queries)
    search = FocusedSearch(bench.collection, bench.encoder)
    asked = [
        Query(bench.dataset.images[image].path, Mask(mask))
        for image, mask in zip(queries.images[:5], queries.masks[:5], strict=True)
    ]
    for row, result in enumerate(search.search_many(asked, limit=12, candidates=12, focus=focus)):
        found = {int(str(hit.id)): hit.score for hit in result}
        assert len(found) == 12
        assert all(abs(scores[row, index] - score) < TOLERANCE for index, score in found.items())


def test_a_query_that_is_encoded_already_finds_the_same(bench: Bench, queries: QuerySet) -> None:
    focus = Focus(1, attention_shift=1, zoom=(0.0, 2.0))
    search = FocusedSearch(bench.collection, bench.encoder)
    asked = [
        Query(bench.dataset.images[image].path, Mask(mask))
        for image, mask in zip(queries.images[:2], queries.masks[:2], strict=True)
    ]
    encoded = Reranker(bench.encoder).query(asked[0].image, asked[0].prompt, focus=focus)
    plain = search.search_many(asked, focus=focus)
    mixed = search.search_many([encoded, asked[1]], focus=focus)
    assert [[(hit.id, round(hit.score, 4)) for hit in result] for result in mixed] == [
        [(hit.id, round(hit.score, 4)) for hit in result] for result in plain
    ]
    with pytest.raises(InvalidInput, match="query 1: .*not found"):
        search.search_many([encoded, Query("none.jpg")], focus=focus)


def test_collections_of_the_user_stay_and_ours_goes(bench: Bench, queries: QuerySet, tmp_path: Path) -> None:
    from phs_milvus.milvus.collection import FocusedCollection

    uri = str(tmp_path / "theirs.db")
    client = connection.connect(uri)
    FocusedCollection.create(client, "phs_eval", bench.info)
    connection.close(client)
    ours = Bench(bench.encoder, bench.dataset, bench._store, milvus=uri)
    TwoStage(Focus(1), 10).scores(ours, queries.take(range(3)))
    assert len(ours.collection.client.list_collections()) == 2
    ours.close()
    client = connection.connect(uri)
    assert client.list_collections() == ["phs_eval"]
    connection.close(client)


def test_asking_for_few_scores_at_a_time_changes_none(
    bench: Bench, queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = bench.embeddings[queries.images]
    weights = head_weights(bench.head_scores(queries), 1)
    whole, readout = bench.rerank(embeddings, weights), bench.readout(bench.states, np.ones((COUNT, HEADS), np.float32))
    # Blocks of 7 divide neither the queries nor the database.
    for pairs in (7, 7 * COUNT, 2 * bench.info.embedding_size):
        monkeypatch.setattr("phs_milvus.evaluation.bench._PAIRS", pairs)
        assert np.allclose(bench.rerank(embeddings, weights), whole, atol=1e-5)
        assert np.allclose(bench.readout(bench.states, np.ones((COUNT, HEADS), np.float32)), readout, atol=1e-5)


def test_the_example_of_the_package_runs(labels: Path, bench: Bench, tmp_path: Path, capsys) -> None:
    import phs_milvus.evaluation as package

    assert package.__doc__ is not None
    example = textwrap.dedent("\n".join(line for line in package.__doc__.splitlines() if line[:4] == "    "))
    for written, here in (("VOC2007", labels), ("127.0.0.1:50051", bench.encoder.address), (".phs-eval", tmp_path)):
        assert f'"{written}"' in example
        example = example.replace(f'"{written}"', repr(str(here)))
    exec(example, {})
    assert [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "whole image",
        "PHS h=1, Query-DB",
    ]
