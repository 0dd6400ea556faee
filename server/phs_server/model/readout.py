"""From the PHS state and head weights to the embedding: the tail of the model for one token per image.

    y = r + ls1 * (W_o concat(w_h * o_h) + b_o)
    z = y + ls2 * mlp(norm2(y))
    embedding = l2norm(projection(final_norm(z)))

Nothing after the last attention mixes tokens, so this is the model's own computation (docs/DESIGN.md, "The method").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Readout(nn.Module):
    """The parts of a model after its last attention, in the order they apply.

    Matrix products run at the precision given to `set_precision`; norms, LayerScale and residual sums stay in
    float32, which costs nothing at one token per image and keeps float16 states within 1e-4 of full precision.

    Attributes:
        out: W_o, b_o of the last attention, Linear(D, D).
        scale1, scale2: LayerScale [D], or None.
        norm2, mlp: the last layer's second half.
        final_norm: the model's last norm; Identity for SigLIP, whose pooling head has none.
        projection: Linear(D, E), or None where E = D.
    """

    scale1: Tensor | None
    scale2: Tensor | None

    def __init__(
        self,
        heads: int,
        out: nn.Linear,
        norm2: nn.Module,
        mlp: nn.Module,
        final_norm: nn.Module,
        projection: nn.Linear | None = None,
        scale1: Tensor | None = None,
        scale2: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.out = out
        self.norm2 = norm2
        self.mlp = mlp
        self.final_norm = final_norm
        self.projection = projection
        self.register_buffer("scale1", None if scale1 is None else scale1.detach().float())
        self.register_buffer("scale2", None if scale2 is None else scale2.detach().float())

    @property
    def embedding_size(self) -> int:
        """E."""
        return self.out.out_features if self.projection is None else self.projection.out_features

    def set_precision(self, dtype: torch.dtype) -> None:
        """Sets the precision of the matrix products."""
        for module in (self.out, self.mlp, self.projection):
            if module is not None:
                module.to(dtype)

    def forward(self, residual: Tensor, head_outputs: Tensor, head_weights: Tensor) -> Tensor:
        """Reads out embeddings.

        Args:
            residual: float [B, D], r.
            head_outputs: float [B, D], o_h side by side, before the output projection.
            head_weights: float [B, H], or [1, H] for one set of weights over the whole batch.

        Returns:
            float32 [B, E], l2-normalised.
        """
        batch, hidden = head_outputs.shape
        weighted = head_outputs.view(batch, self.heads, hidden // self.heads) * head_weights.unsqueeze(-1)
        embedding = self.finish(residual, weighted.view(batch, hidden))
        if self.projection is not None:
            embedding = self.projection(embedding.to(self.out.weight.dtype)).float()
        return nn.functional.normalize(embedding, dim=-1)

    def finish(self, residual: Tensor, head_outputs: Tensor) -> Tensor:
        """The rest of the last layer, and the final norm, for any tokens: residual and weighted head outputs [B, D] ->
        float32 [B, D], before a projection."""
        dtype = self.out.weight.dtype
        y = residual.float() + _scaled(self.out(head_outputs.to(dtype)).float(), self.scale1)
        z = y + _scaled(self.mlp(self.norm2(y).to(dtype)).float(), self.scale2)
        finished: Tensor = self.final_norm(z)
        return finished


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
