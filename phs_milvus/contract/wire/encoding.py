"""Requests to encode images, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import ImageError, InvalidInput
from phs_milvus.contract.types import Encoding, Focus, MaskRuns, Pointing, Region
from phs_milvus.contract.wire.tensors import tensor_to_pb

DIGEST_BYTES = 32
MOST_PROMPTS = 64
_MOST_OUTPUTS = 16
_REGION_FIELDS = ("x0", "y0", "x1", "y1")
# The tensors that an output asks for, by their name in an Encoding and on the wire.
_FIELDS: dict[int, tuple[str, ...]] = {
    pb.OUTPUT_EMBEDDING: ("embedding",),
    pb.OUTPUT_STATE: ("state",),
    pb.OUTPUT_HEADS: ("head_scores", "head_weights"),
    pb.OUTPUT_ATTENTION: ("attention",),
    pb.OUTPUT_MASK: ("mask",),
    pb.OUTPUT_REGION_FEATURE: ("region_feature",),
}


def encode_request(
    image: bytes,
    pointings: Sequence[Pointing],
    *,
    digest: bytes = b"",
    embedding: bool = True,
    state: bool = False,
    head_weights: bool = False,
    timings: bool = False,
    attention: bool = False,
    mask: bool = False,
    region_feature: bool = False,
    expected_fingerprint: str = "",
) -> pb.EncodeRequest:
    """Builds an EncodeRequest for an image, or for the digest of one; the flags say what the response should hold."""
    flags = [
        (embedding, pb.OUTPUT_EMBEDDING),
        (state, pb.OUTPUT_STATE),
        (head_weights, pb.OUTPUT_HEADS),
        (timings, pb.OUTPUT_TIMINGS),
        (attention, pb.OUTPUT_ATTENTION),
        (mask, pb.OUTPUT_MASK),
        (region_feature, pb.OUTPUT_REGION_FEATURE),
    ]
    request = pb.EncodeRequest(
        image=image,
        digest=digest,
        outputs=[output for wanted, output in flags if wanted],
        expected_fingerprint=expected_fingerprint,
    )
    if len(pointings) == 1:
        _point(request, pointings[0])
    else:
        for pointing in pointings:
            _point(request.prompts.add(), pointing)
    return request


def _point(message: pb.EncodeRequest | pb.Prompt, pointing: Pointing) -> None:
    message.focus.CopyFrom(_focus_to_pb(pointing.focus))
    if pointing.mask is not None:
        message.mask.CopyFrom(_mask_to_pb(pointing.mask))


def _mask_to_pb(mask: MaskRuns) -> pb.Mask:
    return pb.Mask(width=mask.width, height=mask.height, runs=mask.runs.tolist())


def _focus_to_pb(focus: Focus) -> pb.Focus:
    message = pb.Focus(attention_shift=focus.attention_shift, zoom=focus.single_zoom, fovea=focus.fovea)
    if focus.heads_on == "all":
        message.all_heads = True
    elif focus.heads_on is not None:
        message.heads_on = focus.heads_on
    return message


def image_of(request: pb.EncodeRequest | pb.LocateRequest) -> tuple[bytes, bytes]:
    """(image, digest) of a request, one of which is empty.

    Raises:
        ImageError: neither is given.
        InvalidInput: both are, or the digest is none.
    """
    if not request.digest:
        if not request.image:
            raise ImageError("is empty")
    elif request.image:
        raise InvalidInput("is given beside image; give one of them", "digest")
    elif len(request.digest) != DIGEST_BYTES:
        raise InvalidInput(f"has {len(request.digest)} bytes; a sha256 has {DIGEST_BYTES}", "digest")
    return request.image, request.digest


def pointings_of(request: pb.EncodeRequest, model_heads: int) -> list[Pointing]:
    """What a request points at, at least one; masks are not yet checked against the image.

    Raises:
        InvalidInput: more heads than the model has, a number out of range, or more prompts than one request may hold.
    """
    if not request.prompts:
        return [_pointing(request, model_heads)]
    if request.HasField("mask") or request.HasField("focus"):
        raise InvalidInput("are given beside mask or focus; put these into a prompt of their own", "prompts")
    if len(request.prompts) > MOST_PROMPTS:
        raise InvalidInput(f"{len(request.prompts)}; one request takes {MOST_PROMPTS}", "prompts")
    return [_pointing(prompt, model_heads) for prompt in request.prompts]


def count_runs(request: pb.EncodeRequest) -> int:
    """How many runs the masks of a request have together."""
    return len(request.mask.runs) + sum(len(prompt.mask.runs) for prompt in request.prompts)


def count_images(request: pb.EncodeRequest) -> int:
    """How many images a request is to the model, at most: each crop and each foveal prompt is one of its own."""
    alone = [bool(prompt.focus.zoom or prompt.focus.fovea) for prompt in request.prompts]
    return max(1, sum(alone) + (not all(alone)))


def has_mask(request: pb.EncodeRequest) -> list[bool]:
    """Whether each prompt of a request has a mask, in the order of its answers."""
    return [prompt.HasField("mask") for prompt in request.prompts or [request]]


def _pointing(message: pb.EncodeRequest | pb.Prompt, model_heads: int) -> Pointing:
    mask = None
    if message.HasField("mask"):
        runs = np.fromiter(message.mask.runs, np.uint32, len(message.mask.runs))
        mask = MaskRuns(message.mask.width, message.mask.height, runs)
    return Pointing(mask, _focus_from_pb(message.focus, model_heads))


def _focus_from_pb(focus: pb.Focus, model_heads: int) -> Focus:
    heads_on: int | Literal["all"] | None = None
    if focus.WhichOneof("heads") == "all_heads":
        heads_on = "all" if focus.all_heads else None
    elif focus.WhichOneof("heads") == "heads_on":
        heads_on = focus.heads_on
        if not 1 <= heads_on <= model_heads:
            raise InvalidInput(
                f"heads_on is {heads_on}, but the model has {model_heads} heads; use 1 to {model_heads}", "focus"
            )
    # Which heads stage one of a search keeps is not the server's business.
    return Focus(heads_on, attention_shift=focus.attention_shift, zoom=focus.zoom, fovea=focus.fovea, ann_heads=None)


def check_outputs(outputs: Sequence[int]) -> None:
    """Refuses a request that asks for what there is not.

    Raises:
        InvalidInput: an unknown output, or more of them than anybody needs.
    """
    if len(outputs) > _MOST_OUTPUTS:
        raise InvalidInput(f"{len(outputs)} entries; name each output once, {_MOST_OUTPUTS} at most", "outputs")
    for output in outputs:
        if output == pb.OUTPUT_UNSPECIFIED or output not in pb.Output.values():
            known = ", ".join(name for name, value in pb.Output.items() if value)
            raise InvalidInput(f"{output} is not a known output; use {known}", "outputs")


def stream_request(item: int, request: pb.EncodeRequest) -> pb.EncodeStreamRequest:
    """One item of EncodeStream."""
    return pb.EncodeStreamRequest(id=item, request=request)


def encodings_to_pb(encodings: Sequence[Encoding], request: pb.EncodeRequest) -> pb.EncodeResponse:
    """The answer to a request: one Encoding for each of its prompts."""
    if not request.prompts:
        return _encoding_to_pb(encodings[0], request.outputs)
    width, height = encodings[0].width, encodings[0].height
    parts = [_encoding_to_pb(encoding, request.outputs) for encoding in encodings]
    return pb.EncodeResponse(width=width, height=height, encodings=parts)


def _encoding_to_pb(encoding: Encoding, outputs: Sequence[int]) -> pb.EncodeResponse:
    """With the outputs that were asked for; an empty list asks for the embedding."""
    wanted = set(outputs) or {pb.OUTPUT_EMBEDDING}
    response = pb.EncodeResponse(width=encoding.width, height=encoding.height, region=region_to_pb(encoding.region))
    for output, fields in _FIELDS.items():
        for field in fields if output in wanted else ():
            array = getattr(encoding, field)
            if array is not None:
                getattr(response, field).CopyFrom(tensor_to_pb(array))
    if pb.OUTPUT_TIMINGS in wanted and encoding.timings is not None:
        t = encoding.timings
        response.timings.CopyFrom(pb.Timings(decode_ms=t.decode_ms, queue_ms=t.queue_ms, compute_ms=t.compute_ms))
    return response


def region_to_pb(region: Region | None) -> pb.Region | None:
    """x0, y0, x1, y1 -> Region."""
    return None if region is None else pb.Region(**dict(zip(_REGION_FIELDS, region, strict=True)))


def region_from_pb(message: pb.Region, width: int, height: int) -> Region:
    """Region -> x0, y0, x1, y1.

    Raises:
        InvalidInput: it is empty, or not inside an image of this size.
    """
    x0, y0, x1, y1 = region = (message.x0, message.y0, message.x1, message.y1)
    if not (x0 < x1 <= width and y0 < y1 <= height):
        raise InvalidInput(f"{region} is not inside the {width}x{height} image", "region")
    return region


def stream_error(item: int, code: int, message: str) -> pb.EncodeStreamResponse:
    """The answer to an item that failed; `code` is a google.rpc.Code number."""
    return pb.EncodeStreamResponse(id=item, error=pb.ItemError(code=code, message=message))
