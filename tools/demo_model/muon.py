"""Muon in float32: momentum made orthogonal, for the weight matrices of the demo model.

torch.optim.Muon does the same in bfloat16, which CPUs without AVX512-BF16 emulate: there one of its
steps takes longer than the forward and backward pass together.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic of Jordan et al. 2024, as in torch.optim.Muon
ITERATIONS = 5


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T, nearly, of matrix = U S V^T: float32 [rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the size of AdamW's updates (arXiv 2502.16982).

    parameters: matrices only. pool: spreads the matrices over threads.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], pool: Executor, momentum=0.95, weight_decay=0.05):
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self._pool = pool

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every matrix from its .grad."""
        for group in self.param_groups:
            directions = []
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                directions.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
            for parameter, update in zip(group["params"], self._pool.map(orthogonal, directions), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * max(parameter.shape) ** 0.5 * group["lr"])
