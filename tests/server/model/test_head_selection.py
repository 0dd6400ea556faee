"""Head scores and head selection on values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from phs_server.model.head_selection import default_head_count, score_heads, select_heads


def test_roi_score_is_the_mask_weighted_attention() -> None:
    attention = torch.tensor([[[0.5, 0.2, 0.1], [0.1, 0.1, 0.6]]])
    mask = torch.tensor([[1.0, 0.5, 0.0]])
    assert torch.allclose(score_heads(attention, mask), torch.tensor([[0.6, 0.15]]))


def test_selected_heads_share_the_total_weight() -> None:
    weights = select_heads(torch.tensor([[0.1, 0.4, 0.3, 0.2]]), torch.tensor([2]))
    assert weights.tolist() == [[0.0, 2.0, 2.0, 0.0]]


def test_ties_go_to_the_lowest_index() -> None:
    weights = select_heads(torch.tensor([[0.2, 0.3, 0.3, 0.3]]), torch.tensor([2]))
    assert weights.tolist() == [[0.0, 2.0, 2.0, 0.0]]
    assert select_heads(torch.zeros(1, 24), torch.tensor([1]))[0].argmax() == 0


def test_counts_differ_within_a_batch_and_the_full_count_keeps_all() -> None:
    scores = torch.tensor([[0.3, 0.2, 0.1]] * 3)
    weights = select_heads(scores, torch.tensor([1, 3, 2]))
    assert weights.tolist() == [[3.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.5, 1.5, 0.0]]


@pytest.mark.parametrize(("heads", "kept"), [(12, 5), (16, 5), (24, 1), (3, 1), (6, 2), (8, 3), (1, 1)])
def test_default_head_count(heads: int, kept: int) -> None:
    assert default_head_count(heads) == kept
