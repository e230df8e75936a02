from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl.pruners import GraSP, InvertedGraSP
from tests.pruners.networks import half_square, scores, small, small_batches


def test_grasp_is_the_weight_times_the_product_of_hessian_and_gradient() -> None:
    # Half the squared error of f(x) = w . x: g = error * x and H = x x^T. With w = (2, -1), x = (1,
    # 3), target 1: error -2, g = (-2, -6), Hg = x (x . g) = -20 x = (-20, -60), w Hg = (-40, 60).
    # Removing the first weight makes the gradient larger.
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[2.0, -1.0]])
    batches = [(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]))]
    assert scores(GraSP(temperature=1.0), network, batches, half_square)["weight"].tolist() == [
        [-40.0, 60.0]
    ]
    assert scores(InvertedGraSP(temperature=1.0), network, batches, half_square)[
        "weight"
    ].tolist() == [[40.0, -60.0]]


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_agrees_with_an_explicit_hessian(temperature: float) -> None:
    network, batches = small(), small_batches()
    names = [name for name, parameter in network.named_parameters() if parameter.dim() == 2]
    sizes = [network.get_parameter(name).numel() for name in names]
    flat = torch.cat([network.get_parameter(name).detach().flatten() for name in names])

    def loss(weights: Tensor) -> Tensor:
        parts = {
            name: part.view_as(network.get_parameter(name))
            for name, part in zip(names, weights.split(sizes), strict=True)
        }
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return nn.functional.cross_entropy(
            functional_call(network, parts, (images,)) / temperature, labels
        )

    hessian = torch.autograd.functional.hessian(loss, flat)
    gradient = torch.func.grad(loss)(flat)
    expected = flat * (hessian @ gradient)
    found = scores(GraSP(temperature), network, batches)
    torch.testing.assert_close(
        torch.cat([found[name].flatten() for name in names]), expected, rtol=1e-9, atol=0.0
    )


def test_removing_low_grasp_scores_keeps_more_gradient_flow_than_removing_high_ones() -> None:
    network, batches = small(), small_batches()
    found = torch.cat([score.flatten() for score in scores(GraSP(1.0), network, batches).values()])

    def flow(removed: Tensor) -> float:
        weights = {
            name: parameter.detach().clone() for name, parameter in network.named_parameters()
        }
        names = [name for name in weights if weights[name].dim() == 2]
        for name, part in zip(
            names, removed.split([weights[name].numel() for name in names]), strict=True
        ):
            weights[name].view(-1)[part] *= (
                0.99  # a small step towards removal: the score is a first-order statement
            )
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        loss = nn.functional.cross_entropy(functional_call(network, leaves, (images,)), labels)
        return sum(
            float(g.square().sum())
            for g in torch.autograd.grad(loss, [leaves[name] for name in names])
        )

    order = found.argsort()
    lowest, highest = (
        torch.zeros_like(found, dtype=torch.bool),
        torch.zeros_like(found, dtype=torch.bool),
    )
    lowest[order[:5]], highest[order[-5:]] = True, True
    nothing = torch.zeros_like(lowest)
    assert flow(highest) < flow(nothing)
    assert flow(highest) < flow(lowest)
    # To first order the change is 2 g^T H dw = -0.02 * (sum of scores removed).
    assert flow(highest) - flow(nothing) == pytest.approx(
        -0.02 * float(found[highest].sum()), rel=0.05
    )


def test_grasp_scores_a_network_with_attention() -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = (
                nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
                nn.Linear(4, 3),
            )

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.encoder(tokens).mean(1))

    network, batches = (
        Attentive().double(),
        [(torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(0, 3, (5,)))],
    )
    found = scores(GraSP(1.0), network, batches)
    assert all(score.isfinite().all() and score.any() for score in found.values())


def test_a_temperature_of_grasp_that_is_not_positive_is_an_error() -> None:
    with pytest.raises(ValueError, match="temperature: 0 must be positive"):
        GraSP(temperature=0)
