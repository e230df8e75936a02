"""Weights pruned to 2:4 are what torch's semi-structured matrices hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.pruners import Magnitude


@pytest.mark.gpu
def test_a_layer_pruned_to_two_of_four_runs_as_a_semi_structured_matrix() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 128).half().cuda()
    prune(layer, Magnitude(), granularity="2:4", example_input=torch.ones(1, 256))
    inputs = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        expected = layer(inputs)
        layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight))
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-2, atol=1e-2)
