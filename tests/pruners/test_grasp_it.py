from __future__ import annotations

import torch
from torch import nn

from synflow_pl.pruners import GRASPIt
from synflow_pl.pruners.forward import loss_gradients
from tests.pruners.networks import half_square, scores, small, small_batches


def test_grasp_it_is_the_squared_gradient_of_the_mean_loss() -> None:
    # f(x) = w . x with w = (2, -1), x = (1, 3), target 1: error -2 and dL/dw = (-2, -6).
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[2.0, -1.0]])
    batches = [(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]))]
    assert scores(GRASPIt(), network, batches, half_square)["weight"].tolist() == [[4.0, 36.0]]
    # With a second example of x = (1, 1) and target 0, error 1, the mean is (-0.5, -2.5).
    batches.append((torch.tensor([[1.0, 1.0]]), torch.tensor([0.0])))
    assert scores(GRASPIt(), network, batches, half_square)["weight"].tolist() == [[0.25, 6.25]]


def test_grasp_it_scores_the_gradient_of_the_pruned_network() -> None:
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[2.0, -1.0]])
    batches = [(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]))]
    masks = {"weight": torch.tensor([[False, True]])}
    # f = -3, the error is -4 and dL/dw = (-4, -12). The removed weight is not a parameter.
    found = scores(GRASPIt(), network, batches, half_square, masks=masks)
    assert found["weight"].tolist() == [[0.0, 144.0]]


def test_scores_of_all_kept_weights_add_up_to_the_gradient_norm() -> None:
    squares: list[float] = []

    class Recording(GRASPIt):
        def score(self, state):  # type: ignore[no-untyped-def]
            gradients = loss_gradients(state, state.weights).values()
            squares.append(sum(float(gradient.square().sum()) for gradient in gradients))
            return super().score(state)

    found = scores(Recording(), small(), small_batches())
    torch.testing.assert_close(sum(float(score.sum()) for score in found.values()), squares[0])
