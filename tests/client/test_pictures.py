"""Pictures that are pointed at again: several prompts at once, by digest, forgotten, and on several servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from phs_milvus import AsyncEncoder, Box, Encoder, Focus, InvalidInput, Outputs
from phs_milvus.client.balance import Balance
from phs_milvus.client.pictures import Delivery, ranked
from phs_milvus.contract.errors import EncoderBusy, EncoderUnavailable, ImageError, PictureNotHeld, PromptError
from phs_milvus.contract.images import load_image
from phs_server.app import ServerThread
from phs_server.config import Settings

EVERYTHING = Outputs(state=True, head_weights=True, attention=True, mask=True, region_feature=True)
BOXES = [Box(10, 10, 60, 50), Box(80, 30, 150, 110), None, Box(0, 0, 160, 120)]


@pytest.fixture
def photo(make_images: object, tmp_path: Path) -> Path:
    (path,) = make_images(tmp_path, 1)  # type: ignore[operator]
    return path


@pytest.fixture
def counted(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(bytes of the image, bytes of the digest) of each Encode request from now on."""
    sent: list[tuple[int, int]] = []
    call = encoder._call

    def counting(method: object, request: object, timeout: float | None) -> object:
        if hasattr(request, "image"):
            sent.append((len(request.image), len(request.digest)))
        return call(method, request, timeout)

    monkeypatch.setattr(encoder, "_call", counting)
    return sent


def same(one: object, other: object, tolerance: float = 4e-3) -> bool:
    """Whether two encodings hold the same, to the rounding of what is held."""
    names = ("embedding", "state", "head_scores", "head_weights", "attention", "mask", "region_feature")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all((a is None) == (b is None) and (a is None or np.abs(a - b).max() < tolerance) for a, b in pairs)


def test_the_bytes_travel_once(encoder: Encoder, photo: Path, counted: list[tuple[int, int]]) -> None:
    picture = encoder.open(photo)
    assert (picture.width, picture.height) == (160, 120) and not counted
    for box in BOXES:
        assert same(picture.encode(box, outputs=EVERYTHING), encoder.encode(photo, box, outputs=EVERYTHING))
    size = photo.stat().st_size
    assert counted[::2] == [(size, 0), (0, 32), (0, 32), (0, 32)]


def test_several_prompts_at_once_are_each_as_alone(encoder: Encoder, photo: Path) -> None:
    focuses = [Focus(1), Focus(attention_shift=0.7), Focus(), Focus(zoom=1.5)]
    together = encoder.encode_prompts(photo, BOXES, focus=focuses, outputs=EVERYTHING)
    for box, focus, one in zip(BOXES, focuses, together, strict=True):
        alone = encoder.encode(photo, box, focus=focus, outputs=EVERYTHING)
        assert same(one, alone) and one.region == alone.region
        assert (one.width, one.height) == (160, 120)


def test_more_prompts_than_one_request_takes(encoder: Encoder, photo: Path, counted: list[tuple[int, int]]) -> None:
    boxes = [Box(index, 0, index + 20, 40) for index in range(100)]
    encodings = encoder.encode_prompts(photo, boxes)
    assert len(encodings) == 100 and [size > 0 for size, _ in counted] == [True, False]
    assert np.abs(encodings[99].embedding - encoder.encode(photo, boxes[99]).embedding).max() < 2e-3


def test_a_new_crop_needs_the_bytes_again_unseen(encoder: Encoder, photo: Path, counted: list[tuple[int, int]]) -> None:
    picture = encoder.open(photo)
    picture.encode(BOXES[0])
    zoomed = picture.encode(BOXES[1], focus=Focus(zoom=2))
    assert [size > 0 for size, _ in counted] == [True, False, True]
    assert np.abs(zoomed.embedding - encoder.encode(photo, BOXES[1], focus=Focus(zoom=2)).embedding).max() < 2e-3
    del counted[:]
    picture.encode(BOXES[1], focus=Focus(1, zoom=2))
    assert counted == [(0, 32)]


def test_mistakes_with_pictures(encoder: Encoder, photo: Path) -> None:
    picture = encoder.open(photo)
    for prompts, focus, field in (([], Focus(), "prompts"), ([None], [Focus()] * 2, "focus")):
        with pytest.raises(InvalidInput) as caught:
            picture.encode_prompts(prompts, focus=focus)
        assert caught.value.field == field
    with pytest.raises(PromptError):
        picture.encode_prompts([BOXES[0], Box(500, 500, 600, 600)])
    with pytest.raises(ImageError):
        encoder.open(b"no image")


def test_explain_of_a_picture(encoder: Encoder, photo: Path) -> None:
    plain, opened = encoder.explain(photo, BOXES[0]), encoder.open(photo).explain(BOXES[0])
    assert plain.selected_heads == opened.selected_heads and plain.region == opened.region
    assert np.abs(plain.attention - opened.attention).max() < 1e-3


def test_asynchronously(address: str, encoder: Encoder, photo: Path) -> None:
    async def use() -> list[np.ndarray]:
        async with AsyncEncoder(address) as other:
            picture = await other.open(photo)
            first = await picture.encode(BOXES[0])
            rest = await picture.encode_prompts(BOXES)
            return [each.embedding for each in (first, *rest)]

    first, *rest = asyncio.run(use())
    for ours, box in zip([first, *rest], [BOXES[0], *BOXES], strict=True):
        assert np.abs(ours - encoder.encode(photo, box).embedding).max() < 2e-3


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tiny_model: Path) -> Iterator[list[ServerThread]]:
    settings = Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=1)
    with ServerThread(settings) as one, ServerThread(settings) as other:
        yield [one, other]


def test_a_picture_stays_with_the_server_that_has_it(servers: list[ServerThread], photo: Path) -> None:
    addresses = [server.address for server in servers]
    with Encoder(addresses) as encoder:
        picture = encoder.open(photo)
        for box in BOXES:
            picture.encode(box)
        assert picture.sent == {ranked(picture.digest, addresses)[0]}


def test_a_picture_spills_over_when_its_server_is_gone(tiny_model: Path, make_images: object, tmp_path: Path) -> None:
    photos = make_images(tmp_path, 30)  # type: ignore[operator]
    settings = Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=0)
    running = ExitStack()
    with ServerThread(settings) as other, running:
        one = running.enter_context(ServerThread(settings))
        addresses = [one.address, other.address]
        # A picture that belongs to the first.
        photo = next(path for path in photos if ranked(load_image(path).digest, addresses)[0] == one.address)
        with Encoder(addresses) as encoder:
            picture = encoder.open(photo)
            before = picture.encode(BOXES[0]).embedding
            running.close()
            assert np.abs(picture.encode(BOXES[0]).embedding - before).max() < 2e-3
            assert other.address in picture.sent


def test_pictures_are_spread_and_few_move_when_a_server_goes() -> None:
    servers = ["a:1", "b:1", "c:1"]
    digests = [f"{index:064x}" for index in range(300)]
    before = {digest: ranked(digest, servers)[0] for digest in digests}
    after = {digest: ranked(digest, servers[:2])[0] for digest in digests}
    assert all(60 < list(before.values()).count(server) < 140 for server in servers)
    assert all(after[digest] == server for digest, server in before.items() if server != "c:1")


def test_the_order_of_attempts(encoder: Encoder, photo: Path) -> None:
    picture = encoder.open(photo)
    first, second = ranked(picture.digest, ["a:1", "b:1"])
    picture.sent.add(first)
    delivery = Delivery(picture, ["a:1", "b:1"], Balance(["a:1", "b:1"]))
    seen = [(delivery.server, delivery.by_digest)]
    for error in (PictureNotHeld("forgotten"), EncoderBusy("full"), EncoderUnavailable("gone")):
        delivery.failed(error)
        seen.append((delivery.server, delivery.by_digest))
    assert seen == [(first, True), (first, False), (second, False), (None, False)]
    with pytest.raises(EncoderBusy):
        delivery.failed(EncoderBusy("full"))
