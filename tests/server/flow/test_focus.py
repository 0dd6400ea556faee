"""Attention shift, zoom and foveal attention against plain definitions, and through the wire."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import ImageError, InvalidInput
from phs_milvus.contract.types import Encoding, Focus, Limits
from phs_milvus.pointing.prompts import Box, to_array, to_runs
from phs_milvus.search import zooms
from phs_milvus.search.parts import parts_of
from phs_milvus.search.zooms import combined, encode_zooms, encode_zooms_many, used_zooms
from phs_server.flow.focus import bounding_box, foveal_grid, zoom_region
from phs_server.flow.preprocess import Decode
from phs_server.model import checkpoint
from phs_server.model.batch import PromptBatch
from phs_server.model.head_selection import shifted_attention
from tests.checkpoints import save_checkpoint
from tests.naive_phs import load_original, plain_vit
from tests.server.flow.support import view

# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "zoom", "expected"),
    [
        ((10, 20, 30, 50), 1, (10, 20, 30, 50)),
        ((10, 20, 30, 50), 2, (0, 5, 40, 65)),
        ((10, 20, 31, 51), 1.25, (7, 16, 34, 55)),  # 26.25 x 38.75 around (20.5, 35.5): outwards to whole pixels
        ((0, 0, 3, 3), 2, (0, 0, 5, 5)),  # clipped at the left and top: -1.5 to 4.5
        ((95, 70, 101, 77), 3, (89, 63, 101, 77)),  # clipped at the right and bottom
        ((50, 50, 51, 51), 1, (50, 50, 51, 51)),
        ((50, 50, 51, 51), 1.5, (49, 49, 52, 52)),
        ((40, 30, 60, 40), 1e300, (0, 0, 101, 77)),
    ],
)
def test_zoom_region_on_an_odd_sized_image(box: tuple, zoom: float, expected: tuple) -> None:
    assert zoom_region(box, zoom, 101, 77) == expected


@pytest.mark.parametrize("box", [(0, 0, 7, 5), (13, 9, 101, 77), (40, 30, 41, 31), (0, 0, 101, 77)])
@pytest.mark.parametrize("zoom", [1, 1.25, 2])
def test_zoom_is_the_crop_pixel_by_pixel(box: tuple, zoom: float) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (77, 101, 3), dtype=np.uint8)
    data = _png(picture)
    runs = to_runs(Box(*box), 101, 77)
    assert runs is not None
    decode = Decode(32, Image.Resampling.BICUBIC, Limits())
    seen = view(data, runs, Focus(zoom=zoom), grid=4, decode=decode)
    x0, y0, x1, y1 = zoom_region(box, zoom, 101, 77)
    crop = Image.fromarray(picture[y0:y1, x0:x1]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(seen.pixels, np.asarray(crop).transpose(2, 0, 1))
    inside = to_array(Box(*box), 101, 77)[y0:y1, x0:x1]
    # Area shares the slow way: every pixel repeated until patches have whole numbers of them.
    fine = np.repeat(np.repeat(inside, 4, axis=0), 4, axis=1).astype(float)
    shares = fine.reshape(4, y1 - y0, 4, x1 - x0).mean(axis=(1, 3))
    assert np.allclose(seen.prompts[0].mask.reshape(4, 4), shares, atol=1e-6)
    assert seen.region == (x0, y0, x1, y1)
    assert bounding_box(to_array(Box(*box), 101, 77)) == box


def test_foveal_grid_by_hand() -> None:
    """2 x 2 patches over 8 x 4 pixels; the box's centre (2, 1) is the first patch's centre (0.5, 0.5)."""
    far = np.exp(-2 / (2 * 100**2))
    near = np.exp(-1 / (2 * 100**2))
    expected = [1.0, (near - far) / (1 - far), (near - far) / (1 - far), 0.0]
    assert np.allclose(foveal_grid((1, 0, 3, 2), 8, 4, 2), expected, atol=1e-6)
    assert np.allclose(expected[1], 0.5, atol=1e-4)
    assert not foveal_grid((0, 0, 8, 4), 8, 4, 1).any()


# --- attention --------------------------------------------------------------------------------------------------------


def test_shifted_attention_by_hand() -> None:
    attention = torch.tensor([[[0.2, 0.3, 0.1, 0.0]]])
    mask = torch.tensor([[1.0, 0.5, 0.0, 0.0]])
    moved = shifted_attention(attention, mask, torch.tensor([0.5]))
    inside = np.array([0.2, 0.15, 0, 0]) / 0.35
    assert np.allclose(moved[0, 0], 0.5 * np.array([0.2, 0.3, 0.1, 0.0]) + 0.5 * inside)
    # No attention at all on the mask: the mask takes its place rather than a division by zero.
    nothing = shifted_attention(attention, torch.tensor([[0.0, 0.0, 0.0, 0.5]]), torch.tensor([1.0]))
    assert nothing[0, 0].tolist() == [0, 0, 0, 1]


def prompts(masks: torch.Tensor, shift: torch.Tensor | None, fovea: torch.Tensor | None) -> PromptBatch[torch.Tensor]:
    """Every head is kept: what is tested here is the attention."""
    return PromptBatch(masks, torch.full((len(masks),), 4), shift, fovea)


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "deit"])
def test_shift_and_fovea_are_plain_definitions(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue("deit") if family == "deit" else save_checkpoint(family, tmp_path)
    loaded = checkpoint.load(str(directory))
    side, grid = loaded.preprocessing.image_size, loaded.preprocessing.grid
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(3, 3, side, side, generator=generator)
    mask = torch.rand(3, grid * grid, generator=generator) * (torch.rand(3, grid * grid, generator=generator) > 0.7)
    shift = torch.tensor([0.0, 0.4, 1.0])
    fovea = torch.stack([torch.zeros(grid * grid), torch.rand(grid * grid, generator=generator), 0.2 * mask[2]])
    last = loaded.backbone(pixels, prompts(mask, shift, fovea))
    ours = loaded.backbone.readout(last.residual, last.head_outputs, torch.ones(1, loaded.backbone.heads))
    original = load_original(directory)
    for index in range(3):
        theirs = plain_vit(original, pixels[index], mask[index], roi=float(shift[index]), bias=fovea[index])
        assert (ours[index] - theirs).abs().max() < 2e-5
    plain = loaded.backbone(pixels)
    unchanged = loaded.backbone.readout(plain.residual, plain.head_outputs, torch.ones(1, loaded.backbone.heads))
    assert (ours[0] - unchanged[0]).abs().max() < 1e-5
    assert min((ours[1] - unchanged[1]).abs().max(), (ours[2] - unchanged[2]).abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", ["dinov2", "dinov2-registers", "dinov3", "clip-full", "siglip-vision"])
def test_a_shift_of_all_attention_keeps_only_values_under_the_mask(family: str, tmp_path: Path) -> None:
    """With all attention shifted to a mask of one patch, every head's output is that patch's value."""
    loaded = checkpoint.load(str(save_checkpoint(family, tmp_path)))
    side, grid = loaded.preprocessing.image_size, loaded.preprocessing.grid
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(4))
    entering = []
    last = loaded.backbone.last
    handle = last.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0]))
    mask = torch.zeros(1, grid * grid)
    mask[0, 5] = 0.25
    heads = loaded.backbone(pixels, prompts(mask, torch.ones(1), None)).head_outputs
    handle.remove()
    normed = last.norm1(entering[0]) if hasattr(last, "norm1") else entering[0]
    assert (heads - last.value(normed)[:, last.prefix_tokens + 5]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("family", ["dinov2", "dinov3", "clip-full"])
def test_fovea_reaches_the_trunk_of_every_family(family: str, tmp_path: Path) -> None:
    loaded = checkpoint.load(str(save_checkpoint(family, tmp_path)))
    side, patches = loaded.preprocessing.image_size, loaded.preprocessing.grid**2
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    fovea = 3 * torch.rand(1, patches, generator=torch.Generator().manual_seed(6))
    biased = loaded.backbone(pixels, prompts(torch.ones(1, patches), None, fovea))
    plain = loaded.backbone(pixels)
    # The residual enters the last layer: a change there was made in the trunk.
    assert (biased.residual - plain.residual).abs().max() > 1e-3
    assert torch.equal(loaded.backbone(pixels).residual, plain.residual)


# --- through the wire -------------------------------------------------------------------------------------------------


def _png(picture: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (77, 101, 3), dtype=np.uint8)


BOX = Box(13, 9, 60, 52)
EVERYTHING = Outputs(state=True, head_weights=True, attention=True)


def test_zoom_one_with_every_head_is_the_crop(encoder: Encoder, picture: np.ndarray) -> None:
    zoomed = encoder.encode(picture, BOX, focus=Focus(heads_on=4, attention_shift=0, zoom=1))
    crop = encoder.encode(picture[9:52, 13:60])
    assert np.abs(zoomed.embedding - crop.embedding).max() < 1e-6


def test_the_state_of_a_focused_encoding_reads_out_to_its_embedding(encoder: Encoder, picture: np.ndarray) -> None:
    focused = encoder.encode(picture, BOX, focus=Focus(heads_on=2, attention_shift=0.7, zoom=2), outputs=EVERYTHING)
    scores = encoder.rerank(focused.embedding[None], focused.head_weights[None], focused.state[None])
    assert scores[0, 0] > 0.9999
    assert focused.attention.shape == (4, 4, 4)


def test_explain_spans_the_crop_and_shows_the_shift(encoder: Encoder, picture: np.ndarray) -> None:
    plain = encoder.explain(picture, BOX)
    focus = Focus(attention_shift=1, zoom=1.5)
    explanation = encoder.explain(picture, BOX, focus=focus)
    assert plain.region == (0, 0, 101, 77)
    assert explanation.region == zoom_region((13, 9, 60, 52), 1.5, 101, 77)
    # All attention is under the mask now, yet heads are selected by the attention as it was.
    assert np.allclose(explanation.attention.sum(axis=(1, 2)), 1, atol=1e-5)
    assert not explanation.attention[:, explanation.mask == 0].any()
    assert explanation.head_scores.max() < 1


def test_items_of_one_batch_do_not_mix(encoder: Encoder, picture: np.ndarray) -> None:
    alone = encoder.encode(picture)
    before = encoder.encode(picture, BOX, focus=Focus(attention_shift=1))
    for result, expected in zip(
        encoder.encode_many([picture] * 8, [BOX, None] * 4, focus=Focus(attention_shift=1)),
        [before, alone] * 4,
        strict=True,
    ):
        assert isinstance(result, Encoding)
        assert np.abs(result.embedding - expected.embedding).max() < 1e-5


@pytest.mark.parametrize("few", [16, 0])
def test_many_queries_at_many_scales(
    encoder: Encoder, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Side by side or over a stream: each query is as alone, in order, and one bad query fails alone."""
    monkeypatch.setattr(zooms, "FEW", few)
    focus = Focus(attention_shift=1, zoom=(0, 2), ann_heads=None)
    results = encode_zooms_many(encoder, [picture, picture, b"no", picture], [BOX, None, BOX, Box(0, 0, 9, 9)], focus)
    assert isinstance(results.pop(2), ImageError)
    for result, prompt, parts in zip(results, (BOX, None, Box(0, 0, 9, 9)), (2, 0, 2), strict=True):
        assert isinstance(result, Encoding) and len(result.per_zoom) == parts
        alone = combined([encoder.encode(picture, prompt, focus=scale) for scale in used_zooms(prompt, focus)])
        assert np.abs(result.embedding - alone.embedding).max() < 1e-5


def test_scales_are_averaged(encoder: Encoder, picture: np.ndarray) -> None:
    focus = Focus(heads_on=1, attention_shift=1, zoom=(0, 2, 1.25), ann_heads=None)
    query = encode_zooms(encoder, picture, BOX, focus)
    singles = [
        encoder.encode(picture, BOX, focus=Focus(heads_on=1, attention_shift=1, zoom=z), outputs=EVERYTHING)
        for z in (0, 2, 1.25)
    ]
    mean = sum(single.embedding for single in singles)
    assert np.abs(query.embedding - mean / np.linalg.norm(mean)).max() < 1e-6
    states = np.stack([single.state for single in singles])
    expected = [encoder.rerank(s.embedding[None], s.head_weights[None], states)[0] for s in singles]
    assert np.abs(parts_of([query]).query_db_scores(encoder, states) - np.mean(expected, axis=0)).max() < 1e-6
    (many,) = encode_zooms_many(encoder, [picture], [BOX], focus)
    assert isinstance(many, Encoding) and len(many.per_zoom) == 3
    assert np.abs(many.embedding - query.embedding).max() < 1e-5
    assert combined([singles[0]]) is singles[0]
    assert encode_zooms(encoder, picture, None, focus).per_zoom == ()


@pytest.mark.parametrize(
    "focus",
    [
        {"heads_on": 0},
        {"heads_on": 2.5},
        {"heads_on": 2**33},
        {"heads_on": "2"},
        {"ann_heads": 0},
        {"ann_heads": "some"},
        {"attention_shift": "1"},
        {"zoom": "2"},
        {"zoom": [0, None]},
        {"attention_shift": -0.1},
        {"attention_shift": 1.01},
        {"zoom": 0.5},
        {"zoom": ()},
        {"zoom": (0, float("nan"))},
        {"fovea": -1},
    ],
)
def test_focus_out_of_range(focus: dict) -> None:
    with pytest.raises(InvalidInput) as error:
        Focus(**focus)
    assert error.value.field == "focus"
    assert Focus(np.int64(2), zoom=[0, 2]) == Focus(2, zoom=(0, 2))


def test_one_encoding_has_one_zoom(encoder: Encoder, picture: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="several zooms"):
        encoder.encode(picture, BOX, focus=Focus(zoom=(0, 2)))


def test_fovea_through_the_server(encoder: Encoder, picture: np.ndarray) -> None:
    plain, biased = (
        encoder.encode(picture, BOX, focus=Focus(heads_on=4, attention_shift=0, fovea=alpha)) for alpha in (0, 50)
    )
    assert np.abs(plain.embedding - biased.embedding).max() > 1e-3


def test_presets(encoder: Encoder, picture: np.ndarray) -> None:
    assert Focus.paper() == Focus(attention_shift=0, ann_heads=None) != Focus()
    robust = encode_zooms(encoder, picture, BOX, Focus.robust())
    by_hand = encode_zooms(encoder, picture, BOX, Focus(4, attention_shift=1, zoom=(0, 1.25, 2)))
    assert robust.head_weights.tolist() == [1, 1, 1, 1]
    assert np.abs(robust.embedding - by_hand.embedding).max() < 1e-6
