"""Where in an image the thing is that a query looks at: maps over the patches, boxes, and the third stage's score.

    patch readout   R_p = cos(readout(r, V_p, w), e)     what the embedding would be if the heads looked at p alone
    evidence        C_p = sum_h A_hp <V_hp, d score / d o_h>     the patch's share of the Query-DB score
    region match    M_p = cos(final patch token p, the query's region feature)

r = residual, V = values, A = attention, w = head weights, e = embedding (docs/DESIGN.md, "Beyond the paper"). Which
maps make the peak and which the boxes was measured: benchmarks/quality.

B = images, T = tokens, N = patches, D = hidden size, H = heads, E = embedding size.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from phs_milvus.contract.types import Float32Array
from phs_server.model.backbone import Backbone
from phs_server.model.head_selection import shifted_attention
from phs_server.model.last_layer import LastLayer
from phs_server.model.readout import Readout

# A patch belongs to the located region from this share of the patch readout's range on.
_REGION = 0.6
# What the patch readout weighs against the region match in the map that boxes are cut from.
_READOUT_WEIGHT = 2.0
# Best region matches that are averaged.
_BEST_MATCHES = 5
_SMALLEST_SPREAD = 1e-6


class Sought(NamedTuple):
    """What is looked for, on the device.

    embedding: float32 [E]; head_weights: float32 [H]; region_feature: float32 [D] or None;
    all_heads_embedding: float32 [E] or None.
    """

    embedding: Tensor
    head_weights: Tensor
    region_feature: Tensor | None
    all_heads_embedding: Tensor | None


class Located(NamedTuple):
    """Results for B images.

    evidence: float32 [B, N], z-scores, whose maximum is the peak; extent: float32 [B, N], cosines in [-1, 1], the map
    that boxes are cut from; score, match: float32 [B].
    """

    evidence: Float32Array
    extent: Float32Array
    score: Float32Array
    match: Float32Array


class Locator:
    """Computes the maps for one backbone.

    Args:
        backbone: before its layers are rewritten for speed: evidence needs a gradient, and those give none.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._readout: Readout = copy.deepcopy(backbone.readout).float().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Moves what is not the backbone's."""
        self._readout.to(device)

    def locate(self, tokens: Tensor, sought: Sought) -> tuple[Tensor, ...]:
        """tokens [B, T, D] entering the last layer -> the fields of `Located`, on the device."""
        last, values = self._backbone.attend(tokens), self._backbone.values(tokens)
        weights = sought.head_weights
        readout = self.patch_readout(last, values, weights, sought.embedding)
        extent = readout
        evidence = standard(self.patch_evidence(last, values, weights, sought.embedding))
        if sought.all_heads_embedding is not None:
            every = torch.ones_like(weights)
            evidence = evidence + standard(self.patch_evidence(last, values, every, sought.all_heads_embedding))
        match = torch.zeros_like(readout[:, 0])
        if sought.region_feature is not None:
            matches = self.region_match(tokens, sought.region_feature)
            extent = weighted(readout, matches, _READOUT_WEIGHT)
            evidence = evidence + standard(matches)
            match = matches.topk(min(_BEST_MATCHES, matches.shape[1])).values.mean(dim=1)
        score = self.refocused_score(tokens, last, readout, sought)
        return standard(smoothed(evidence)), extent, score, match

    def patch_readout(self, last: LastLayer, values: Tensor, weights: Tensor, embedding: Tensor) -> Tensor:
        """R: float32 [B, N], cosines."""
        batch, patches = values.shape[:2]
        residual = last.residual.unsqueeze(1).expand(-1, patches, -1).flatten(0, 1)
        embeddings = self._backbone.readout(residual, values.flatten(0, 1), weights.unsqueeze(0))
        return (embeddings @ embedding).view(batch, patches)

    def patch_evidence(self, last: LastLayer, values: Tensor, weights: Tensor, embedding: Tensor) -> Tensor:
        """C: float32 [B, N], each patch's share of the score to first order."""
        with torch.inference_mode(False), torch.enable_grad():
            outputs = last.head_outputs.float().clone().requires_grad_()
            embeddings = self._readout(last.residual.float().clone(), outputs, weights.clone().unsqueeze(0))
            (embeddings @ embedding.clone()).sum().backward()
            gradient = outputs.grad
        assert gradient is not None
        heads = self._backbone.heads
        by_head = (part.float().unflatten(-1, (heads, -1)) for part in (values, gradient))
        shares = torch.einsum("bnhd,bhd->bhn", *by_head)
        return (last.attention * shares).sum(dim=1)

    def region_match(self, tokens: Tensor, feature: Tensor) -> Tensor:
        """M: float32 [B, N], cosines."""
        return nn.functional.normalize(self._backbone.patch_tokens(tokens), dim=-1) @ feature

    def region_features(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """tokens [1, T, D] and masks float [P, N] in [0, 1] -> float32 [P, D], l2-normalised."""
        return nn.functional.normalize(masks @ self._backbone.patch_tokens(tokens)[0], dim=-1)

    def refocused_score(self, tokens: Tensor, last: LastLayer, readout: Tensor, sought: Sought) -> Tensor:
        """float32 [B]: the image read out with all of its attention on where it is likest to what is sought."""
        low, high = readout.amin(1, keepdim=True), readout.amax(1, keepdim=True)
        mask = (readout >= low + _REGION * (high - low)).float()
        full = mask.new_ones(len(mask))
        attention = shifted_attention(last.attention, mask, full)
        outputs = self._backbone.last.pool_patches(attention, tokens.to(self._backbone.dtype))
        return self._backbone.readout(last.residual, outputs, sought.head_weights.unsqueeze(0)) @ sought.embedding


def smoothed(values: Tensor) -> Tensor:
    """Maps [B, N] of a square grid, each patch averaged with its eight neighbours by 1 2 1 in both directions."""
    side = math.isqrt(values.shape[1])
    grid = nn.functional.pad(values.view(-1, 1, side, side), (1, 1, 1, 1), mode="replicate")
    line = torch.tensor([0.25, 0.5, 0.25], device=values.device)
    return nn.functional.conv2d(grid, torch.outer(line, line)[None, None]).flatten(1)


def weighted(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """A mean of two maps [B, N] that is largest where weight * z(first) + z(second) is, on the maps' own scale."""
    one, other = (
        values.std(dim=1, keepdim=True, correction=0).clamp_min(_SMALLEST_SPREAD) for values in (first, second)
    )
    share = weight * other / (weight * other + one)
    return share * first + (1 - share) * second


def standard(values: Tensor) -> Tensor:
    """z-scores over the patches of each image, float32 [B, N]; zeros where all are equal."""
    values = values.float()
    spread = values.std(dim=1, keepdim=True, correction=0)
    return (values - values.mean(dim=1, keepdim=True)) / spread.clamp_min(_SMALLEST_SPREAD)
