"""What the demo model's training does by hand: [CLS] alone in the last layer, Muon, the order of visits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tools.demo_model.architecture import cls_embedding, new_model
from tools.demo_model.muon import Muon, orthogonal
from tools.demo_model.shards import WINDOW, visit_order


def test_the_cls_row_is_the_models_own() -> None:
    torch.manual_seed(0)
    model = new_model(64).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        own = model(images).last_hidden_state[:, 0]
        assert torch.allclose(cls_embedding(model, images), own, atol=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)])
def test_orthogonal_keeps_directions_and_evens_out_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = u.T @ orthogonal(matrix) @ vh.T
    off_diagonal = result - torch.diag(result.diagonal())
    assert off_diagonal.abs().max() < 1e-4
    # The quintic brings every singular value that is not tiny to between 0.7 and 1.2.
    assert ((result.diagonal() > 0.65) & (result.diagonal() < 1.25))[s > 0.05 * s.max()].all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_muon_agrees_with_torch() -> None:
    torch.manual_seed(0)
    start = torch.randn(24, 96)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    with ThreadPoolExecutor(2) as pool:
        optimisers = (
            Muon([ours], pool),
            torch.optim.Muon([theirs], weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        )
        for _ in range(3):
            gradient = torch.randn(24, 96)
            for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
                parameter.grad = gradient.clone()
                optimiser.param_groups[0]["lr"] = 1e-2
                optimiser.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # theirs runs in bfloat16


def test_visits_go_back_to_shards_that_are_still_there() -> None:
    order = visit_order(1, 5, 400)
    assert order == visit_order(1, 5, 400)
    newest = -1
    for shard in order:
        assert max(0, newest - WINDOW + 1) <= shard <= newest + 1
        newest = max(newest, shard)
    assert order[:2] == [0, 1]  # one visit each while there is nothing to choose from
    assert 75 <= newest <= 90
