from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from synflow_pl import prune
from synflow_pl.flow import linearise_active
from synflow_pl.flow.node import Node
from synflow_pl.pruners import PX
from tests.pruners.networks import scores


def two_units(activation: nn.Module | None = None) -> nn.Module:
    """Return a network whose first hidden unit is open at (1, 2) and whose second is closed."""
    network = nn.Sequential(
        nn.Linear(2, 2, bias=False), activation or nn.ReLU(), nn.Linear(2, 2, bias=False)
    )
    network[0].weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    network[2].weight.data = torch.tensor([[2.0, 5.0], [3.0, 7.0]])
    return network


AT_ONE_TWO = [(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))]


def relative(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return scores, which have an arbitrary factor, over their sum."""
    total = torch.cat([score.flatten() for score in found.values()]).sum()
    return {name: score / total for name, score in found.items()}


def assert_proportional(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    right = relative({name: torch.as_tensor(score) for name, score in expected.items()})
    for name, score in relative(found).items():
        torch.testing.assert_close(score, right[name].to(score), rtol=1e-5, atol=0.0)


def test_px_by_hand() -> None:
    # Through the open unit lead paths from both inputs: J = 1^2 + 2^2 = 5 for both outputs. G is
    # the sum over all paths of the squared weights.
    found = scores(PX(), two_units(), AT_ONE_TWO, input_shape=(2,))
    expected = {
        # For each weight into a unit: 5 times the squares of the weights out of it.
        "0.weight": [[5 * (4 + 9.0)] * 2, [5 * (25 + 49.0)] * 2],
        # For each weight out of a unit: 5 times its square for each of two inputs.
        "2.weight": [[10 * 4.0, 10 * 25.0], [10 * 9.0, 10 * 49.0]],
    }
    assert_proportional(found, expected)


def test_px_sums_both_factors_over_paths_of_kept_weights() -> None:
    # Without the path from the open unit to the second output, its J is zero. Without the weight
    # from the second input J is 1 for the first output, and one path less counts for each unit.
    masks = {
        "0.weight": torch.tensor([[True, False], [True, True]]),
        "2.weight": torch.tensor([[True, True], [False, True]]),
    }
    found = scores(PX(), two_units(), AT_ONE_TWO, masks=masks, input_shape=(2,))
    expected = {"0.weight": [[4.0, 0.0], [25.0, 25.0]], "2.weight": [[4.0, 50.0], [0.0, 0.0]]}
    assert_proportional(found, expected)


def test_px_adds_up_examples() -> None:
    # At (-1, -1) the second unit is open, and J is 2 for both outputs: 5 + 2 in all. An equal J
    # for both outputs is a factor of all scores, so the weight from the first unit is removed.
    masks = {
        "0.weight": torch.ones(2, 2, dtype=torch.bool),
        "2.weight": torch.tensor([[True, True], [False, True]]),
    }
    images, labels = torch.tensor([[1.0, 2.0], [-1.0, -1.0]]), torch.tensor([0, 1])
    for batches in ([(images, labels)], [(images[:1], labels[:1]), (images[1:], labels[1:])]):
        found = scores(PX(), two_units(), batches, masks=masks, input_shape=(2,))
        expected = {
            "0.weight": [[7 * 4.0] * 2, [7 * 25.0 + 2 * 49.0] * 2],
            "2.weight": [[7 * 8.0, 7 * 50.0], [0.0, 2 * 98.0]],
        }
        assert_proportional(found, expected)


@pytest.mark.parametrize(
    ("activation", "factor"),
    [
        (nn.LeakyReLU(0.25), 0.25),
        (nn.Sigmoid(), 1.0),
        (nn.Tanh(), float(torch.tanh(torch.tensor(3.0)) / 3)),
    ],
)
def test_an_activation_is_the_value_over_the_argument(activation: nn.Module, factor: float) -> None:
    paths = linearise_active(two_units(activation), (AT_ONE_TWO[0][0],))
    ones = {"0.weight": torch.ones(2, 2), "2.weight": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}
    divisors: list[float] = []

    def watch(node: Node | None, arguments: Sequence[Any]) -> None:
        if node is None:
            divisors.append(float(arguments[1]))

    # The second unit has the argument -3, and its inputs squared are 5.
    flow = paths.flow(ones, gains=False, watch=watch).item()
    assert flow * math.prod(divisors) == pytest.approx(5 * factor)


class Residual(nn.Module):
    """Convolutions with BatchNorm, a shortcut, pooling and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = (self.second(x) + x).relu()
        return self.head(x.mean((2, 3)))


def test_px_is_the_derivative_of_the_product_of_both_factors() -> None:
    torch.manual_seed(0)
    network = Residual().double()
    nn.init.normal_(network.norm.weight)
    nn.init.normal_(network.norm.running_mean)
    nn.init.uniform_(network.norm.running_var, 0.5, 2.0)
    batches = [
        (torch.randn(n, 2, 5, 5, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (4, 3)
    ]
    names = ["first.weight", "second.weight", "head.weight"]
    masks = {name: torch.rand(network.get_parameter(name).shape) < 0.7 for name in names}
    found = scores(PX(), network, batches, masks=masks, input_shape=(2, 5, 5))
    kept = {name: mask.double() for name, mask in masks.items()}
    weights = {name: network.get_parameter(name).detach() * kept[name] for name in names}

    def product(x: Tensor, weight: dict[str, Tensor], gain: Tensor, *open_: Tensor) -> Tensor:
        x = conv2d(x, weight["first.weight"], padding=1) * gain.view(-1, 1, 1) * open_[0]
        x = (conv2d(x, weight["second.weight"], padding=1) + x) * open_[1]
        return x.mean((2, 3)) @ weight["head.weight"].T

    network.eval()
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        for name in names:
            network.get_parameter(name).mul_(kept[name])
        first = network.norm(network.first(images))
        second = network.second(first.relu()) + first.relu()
        ones = torch.ones(4, dtype=torch.float64)
        opened = ((first > 0).double(), (second > 0).double())
        by_data = product(images.square(), kept, ones, *opened).sum(0)
    squares = {name: weight.square().requires_grad_() for name, weight in weights.items()}
    gain = network.norm.weight / (network.norm.running_var + network.norm.eps).sqrt()
    whole = torch.ones(1, dtype=torch.float64)
    one = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    (product(one, squares, gain.detach().square(), whole, whole) * by_data).sum().backward()
    # A mean over positions is a common factor.
    assert_proportional(
        found, {name: squares[name].detach() * squares[name].grad for name in names}
    )


def test_px_keeps_scores_in_range_at_any_depth() -> None:
    layers = [
        layer for _ in range(300) for layer in (nn.Linear(4, 4, bias=False), nn.LeakyReLU(0.9))
    ]
    torch.manual_seed(0)
    network = nn.Sequential(*layers, nn.Linear(4, 2, bias=False))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    batches = [(scale * torch.randn(3, 4), torch.tensor([0, 1, 0])) for scale in (1e-3, 1e3)]
    found = scores(PX(), network, batches, input_shape=(4,))
    totals = torch.stack([score.sum() for score in found.values()])
    # Each layer of a chain carries all of R.
    torch.testing.assert_close(totals / totals[0], torch.ones(301), rtol=1e-4, atol=0.0)
    joined = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    assert_proportional(scores(PX(), network, joined, input_shape=(4,)), found)  # type: ignore[arg-type]


def test_px_depends_on_the_inputs_of_the_network_and_not_on_labels_or_the_loss() -> None:
    network, images = two_units(), AT_ONE_TWO[0][0]
    expected = scores(PX(), network, AT_ONE_TWO, input_shape=(2,))

    def loss(network: Any, batch: Any) -> Tensor:
        first = network(input=batch["x"])
        return first.sum() + network(-batch["x"]).sum()  # its first call counts

    found = scores(PX(), network, [{"x": images}], loss=loss, input_shape=(2,))  # type: ignore[list-item]
    assert all(torch.equal(score, found[name]) for name, score in expected.items())


def test_px_takes_inputs_as_they_are_before_the_network_writes_to_them() -> None:
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = two_units()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.sub_(4.0))

    batches = [{"x": torch.tensor([[5.0, 6.0]])}]
    found = scores(
        PX(),
        Shifts(),
        batches,  # type: ignore[arg-type]
        loss=lambda network, batch: network(batch["x"]).sum(),
        input_shape=(2,),
    )
    assert batches[0]["x"].tolist() == [[5.0, 6.0]]
    # Paths start at the input, 5 and 6: J is 25 + 36 for both outputs, a common factor.
    expected = scores(PX(), two_units(), AT_ONE_TWO, input_shape=(2,))
    assert_proportional(
        {name.removeprefix("inner."): score for name, score in found.items()}, expected
    )


def test_a_loss_that_does_not_call_the_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not call Sequential itself, so its inputs are not"):
        prune(
            two_units(),
            PX(),
            density=0.5,
            input_shape=(2,),
            batches=[torch.ones(3, 2)],
            loss=lambda network, batch: network[2](network[1](network[0](batch))).sum(),
        )


def test_outputs_that_depend_on_the_size_of_the_batch_are_an_error() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            embedded = self.layer(x)
            return embedded @ embedded.T

    with pytest.raises(ValueError, match=r"PX: for a batch Pairs returns .*\(5, 5\).*\(1, 1\)"):
        prune(
            Pairs(),
            PX(),
            density=0.5,
            input_shape=(4,),
            batches=[(torch.randn(5, 4), torch.arange(5))],
            loss=lambda outputs, labels: cross_entropy(outputs, labels),
        )


def test_px_of_a_network_in_half_precision() -> None:
    expected = scores(PX(), two_units(), AT_ONE_TWO, input_shape=(2,))
    found = scores(PX(), two_units().bfloat16(), AT_ONE_TWO, input_shape=(2,))
    assert all(score.dtype == torch.float32 for score in found.values())
    assert_proportional(found, expected)
