from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.networks import FC, ResNet
from synflow_pl.pruners import SynFlow, SynFlowL2, SynFlowL2AsPublished
from tests import textbook
from tests.pruners.networks import scores


def test_synflow_l2_sums_squared_products_over_paths() -> None:
    # Two inputs, two hidden units, one output. The products of the paths are 1 * 2 and 3 * 4 from
    # the first input, 5 * 2 and 7 * 4 from the second.
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0, -5.0], [3.0, 7.0]])
    network[2].weight.data = torch.tensor([[-2.0, 4.0]])
    found = scores(SynFlowL2(), network, input_shape=(2,))
    # The score of a weight is the sum of the squared products of its paths, 4, 100, 144 and 784, up
    # to a common power of two.
    paths = torch.tensor([[4.0, 100.0], [144.0, 784.0]])
    ratio = 4.0 / found["0.weight"][0, 0]
    assert torch.equal(found["0.weight"] * ratio, paths)
    assert torch.equal(found["2.weight"] * ratio, paths.sum(1)[None])
    # The square of SynFlow's score is the square of a sum: (2 + 10)^2 = 144, not 104, for the first
    # output weight.
    first = scores(SynFlow(), network, input_shape=(2,))["2.weight"]
    assert float(first[0, 1] ** 2 / first[0, 0] ** 2) == pytest.approx((40 / 12) ** 2)
    assert float(found["2.weight"][0, 1] / found["2.weight"][0, 0]) == pytest.approx(928 / 104)


@pytest.mark.parametrize("name", ["fc", "resnet"])
def test_synflow_l2_is_the_textbook_synflow_of_a_network_with_squared_parameters(name: str) -> None:
    network, shape = (FC((1, 4, 4)), (1, 4, 4)) if name == "fc" else (ResNet(8, width=4), (3, 8, 8))
    network.double()
    with torch.no_grad():
        for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if key.endswith("running_var") or tensor.dim() == 1:
                tensor.uniform_(0.5, 2.0)
    found = scores(SynFlowL2(), network, input_shape=shape)
    squared = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in squared.parameters():
            parameter.square_()
        for module in squared.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.copy_((module.running_var + module.eps) ** 2 - module.eps)
    expected = textbook.first_scores(squared, shape)
    largest = {
        kind: max(float(score.max()) for score in kind_scores.values())
        for kind, kind_scores in (("f", found), ("e", expected))
    }
    for key, score in expected.items():
        torch.testing.assert_close(
            found[key] / largest["f"], score / largest["e"], rtol=1e-10, atol=0.0
        )


def test_synflow_l2_as_published_is_the_weight_times_the_derivative_by_its_square() -> None:
    # Here dR/d(w^2) is the sum over the paths through a weight of the product of the squares of the
    # other weights on the path.
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0, -5.0], [3.0, 7.0]])
    network[2].weight.data = torch.tensor([[-2.0, 4.0]])
    found = scores(SynFlowL2AsPublished(), network, input_shape=(2,))
    # |w| is multiplied by 2^2 = 4 or 4^2 = 16 in the first layer, and by 1 + 25 = 26 or 9 + 49 = 58
    # in the second.
    ratio = 4.0 / found["0.weight"][0, 0]
    assert torch.equal(found["0.weight"] * ratio, torch.tensor([[4.0, 20.0], [48.0, 112.0]]))
    assert torch.equal(found["2.weight"] * ratio, torch.tensor([[52.0, 232.0]]))


@pytest.mark.parametrize(("pruner", "power"), [(SynFlowL2, 2), (SynFlowL2AsPublished, 1)])
@pytest.mark.parametrize("rounds", [1, 10])
def test_masks_of_synflow_l2_equal_those_of_an_explicit_loop_over_squared_weights(
    pruner: type[SynFlowL2], power: int, rounds: int
) -> None:
    torch.manual_seed(4)
    network = nn.Sequential(
        *(nn.Linear(a, b, bias=False) for a, b in ((10, 40), (40, 40), (40, 6)))
    ).double()
    weights = {name: parameter.detach().abs() for name, parameter in network.named_parameters()}
    masks, counts = (
        {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()},
        [],
    )
    found = prune(
        network,
        pruner(),
        density=0.05,
        rounds=rounds,
        input_shape=(10,),
        on_round=lambda index, density, now: counts.append(
            sum(int(mask.sum()) for mask in now.values())
        ),
    )
    for count in counts:
        squares = [
            (weight.square() * masks[name]).requires_grad_() for name, weight in weights.items()
        ]
        flow = torch.ones(10, dtype=torch.float64)
        for square in squares:
            flow = square @ flow
        gradients = torch.autograd.grad(flow.sum(), squares)
        scored = [
            weight**power * gradient * masks[name]
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        ]
        level = torch.cat([score.flatten() for score in scored]).topk(count).values[-1]
        masks = {name: score >= level for name, score in zip(masks, scored, strict=True)}
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_synflow_l2_is_conserved_between_layers_and_its_published_variant_is_not() -> None:
    network = FC((1, 4, 4), depth=4, width=12)
    for pruner, conserved in ((SynFlowL2, True), (SynFlowL2AsPublished, False)):
        found = scores(pruner(), network, input_shape=(1, 4, 4))
        totals = torch.stack([score.sum() for score in found.values()])
        assert bool(torch.allclose(totals, totals[0], rtol=1e-4)) == conserved
