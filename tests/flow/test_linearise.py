"""The linear network equals the network made positive by hand, and sums computed by hand."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from synflow_pl.flow import example_of, linearise
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.prunable_parameters import prunable
from tests import textbook


def scores(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    weights = {name: p.detach().abs() for name, p in prunable(network).items()}
    gradients = linearise(network, example_of(network, shape, None)).gradients(weights)
    return {name: weights[name] * gradients[name] for name in weights}


def as_fractions(values: dict[str, Tensor]) -> Tensor:
    flat = torch.cat([score.flatten() for score in values.values()])
    return flat / flat.sum()


def test_scores_of_two_layers_are_sums_over_paths() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    network[2].weight.data = torch.tensor([[-5.0, 7.0]])
    # R = 5 * (1 + 2) + 7 * (3 + 0) = 36; a weight's score is the weight of the paths through it.
    actual = scores(network, (2,))
    factor = actual["2.weight"][0, 0] / 15
    assert torch.equal(actual["0.weight"], factor * torch.tensor([[5.0, 10.0], [21.0, 0.0]]))
    assert torch.equal(actual["2.weight"], factor * torch.tensor([[15.0, 21.0]]))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (FC(), (1, 28, 28)),
        (Conv(width=8), (1, 28, 28)),
        (VGG(11), (3, 32, 32)),
        (VGG(11, batch_norm=False), (3, 32, 32)),
        (ResNet(20), (3, 32, 32)),
        (torchvision.models.resnet18(num_classes=10), (3, 64, 64)),
    ],
    ids=["fc", "conv", "vgg11_bn", "vgg11", "resnet20", "resnet18"],
)
def test_first_round_scores_equal_those_of_the_textbook(
    network: nn.Module, shape: tuple[int, ...]
) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
    single = as_fractions(scores(network, shape)).double()
    double = as_fractions(scores(network.double(), shape))
    textbook_scores = as_fractions(textbook.first_scores(network, shape))
    torch.testing.assert_close(double, textbook_scores, rtol=1e-10, atol=1e-18)
    torch.testing.assert_close(single, textbook_scores, rtol=1e-5, atol=1e-12)


def test_biases_shifts_and_running_means_are_zero() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU()).eval()
    network[0].bias.data.fill_(100.0)
    network[1].bias.data.fill_(-50.0)
    network[1].running_mean.fill_(7.0)
    plain = scores(network, (1, 2, 2))
    for tensor in (network[0].bias.data, network[1].bias.data, network[1].running_mean):
        tensor.zero_()
    assert torch.equal(plain["0.weight"], scores(network, (1, 2, 2))["0.weight"])


@pytest.mark.parametrize(
    "nonlinearity",
    [nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.ELU],
)
def test_any_pointwise_nonlinearity_is_the_identity(nonlinearity: type[nn.Module]) -> None:
    network = FC((1, 4, 4), depth=3, width=8)
    expected = scores(network, (1, 4, 4))
    other = FC((1, 4, 4), depth=3, width=8, nonlinearity=nonlinearity)
    other.load_state_dict(network.state_dict())
    assert all(
        torch.equal(score, expected[name]) for name, score in scores(other, (1, 4, 4)).items()
    )


def test_scores_do_not_depend_on_how_an_operation_is_called() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.head = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            signal = torch.conv2d(images, self.conv.weight, padding=1)
            signal = signal.relu_()
            signal += signal.clone()
            signal[:, 2:].mul_(3)
            return F.linear(signal.mean((2, 3)), self.head.weight, self.head.bias)

    class Modules(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.head = nn.Linear(4, 2)
            self.register_buffer("scale", torch.tensor([2.0, 2.0, 6.0, 6.0]).view(1, 4, 1, 1))

        def forward(self, images: Tensor) -> Tensor:
            return self.head(
                F.adaptive_avg_pool2d(F.relu(self.conv(images)) * self.scale, 1).flatten(1)
            )

    functional, modules = Functional(), Modules()
    modules.load_state_dict(functional.state_dict(), strict=False)
    expected = as_fractions(scores(modules, (3, 5, 5)))
    torch.testing.assert_close(as_fractions(scores(functional, (3, 5, 5))), expected)


def test_max_pooling_takes_the_largest_flow() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 1, 2, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 1, bias=False)
    )
    # With zero padding a window at a corner has fewer inputs: pooling takes the largest of the four
    # positions, not their sum.
    network[0].padding = (1, 1)
    network[0].weight.data.fill_(1.0)
    network[3].weight.data.fill_(2.0)
    actual = scores(network, (1, 1, 1))
    # In an image of one pixel, padded to 3x3, each of the four windows reads the pixel with another
    # weight; the first is selected.
    assert actual["0.weight"].count_nonzero() == 1
    assert actual["3.weight"].item() == actual["0.weight"].sum().item()


def test_the_score_of_a_weight_used_twice_includes_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)

        def forward(self, signal: Tensor) -> Tensor:
            return self.layer(self.layer(signal))

    network = Twice()
    network.layer.weight.data.fill_(3.0)
    # R = w^2, so w dR/dw = 2 R.
    linear_network = linearise(network, example_of(network, (1,), None))
    weights = {"layer.weight": torch.tensor([[3.0]])}
    total = linear_network.flow(weights)
    assert (3 * linear_network.gradients(weights)["layer.weight"]).item() == pytest.approx(
        2 * total.item()
    )


def test_a_gain_that_is_initialised_to_zero_counts_as_ones() -> None:
    network = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False)
    ).eval()
    nn.init.zeros_(network[1].weight)
    assert all(score.min() > 0 for score in [scores(network, (2,))["2.weight"]])


class Odd(nn.Module):
    def __init__(self, odd: object) -> None:
        super().__init__()
        self.layer, self.head, self.odd = (
            nn.Linear(2, 2, bias=False),
            nn.Linear(2, 1, bias=False),
            odd,
        )
        self.layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
        self.head.weight.data = torch.tensor([[1.0, 1.0]])

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.odd(self.layer(signal)))  # type: ignore[operator]


def test_an_operation_without_a_rule_is_the_identity_and_named_with_its_error() -> None:
    # The flow (3, 7) is divided by 4, the largest power of two below 7. Its fractional part is
    # (0.75, 0.75), and the identity gives (0.75, 1.75): a difference of 1 in 1.5.
    network = Odd(torch.frac)
    linear_network = linearise(network, example_of(network, (2,), None))
    assert linear_network.unknown({}) == {"aten.frac.default": pytest.approx(2 / 3)}
    assert linear_network.notes == (
        "operations without a rule, taken for the identity or an average: aten.frac.default"
        " (off by 67%)",
    )
    assert torch.equal(
        scores(network, (2,))["layer.weight"] * 4, torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    )


def test_an_operation_without_a_rule_that_changes_the_shape_is_the_mean() -> None:
    network = Odd(lambda signal: torch.linalg.vector_norm(signal, dim=1, keepdim=True).expand(1, 2))
    # Both inputs of the head receive (3 + 7) / 2, so R = 10, half of it through each of the head's
    # weights.
    actual = scores(network, (2,))
    assert torch.equal(actual["layer.weight"] * 4, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(actual["head.weight"] * 4, torch.tensor([[5.0, 5.0]]))


def test_an_operation_without_a_rule_that_carries_no_flow_is_not_named() -> None:
    network = Odd(lambda signal: signal * torch.frac(signal).sigmoid())
    linear_network = linearise(network, example_of(network, (2,), None))
    assert linear_network.notes == ()


def test_a_network_whose_output_ignores_its_input_is_an_error() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, signal: Tensor) -> Tensor:
            return self.layer.weight.sum(0)

    with pytest.raises(ValueError, match="no output of Deaf depends on its input"):
        linearise(Deaf(), (torch.ones(1, 4),))


def test_linearise_leaves_the_network_unchanged() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(4, 4), nn.Dropout()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, signal: Tensor) -> Tensor:
            self.calls += 1
            return self.drop(self.layer(signal)) + torch.rand(()).to(signal)

    network = nn.Sequential(Counting(), nn.BatchNorm1d(4))
    network[0].drop.eval()
    network(torch.randn(3, 4)).sum().backward()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    linearise(network, example_of(network, (4,), None))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert all(
        torch.equal(old, p.grad) for old, p in zip(gradients, network.parameters(), strict=True)
    )
    assert modes == [module.training for module in network.modules()]
    assert torch.equal(random, torch.get_rng_state())


def test_example_of_takes_exactly_one_valid_argument() -> None:
    network = FC()
    with pytest.raises(ValueError, match="give either input_shape"):
        example_of(network, None, None)
    with pytest.raises(ValueError, match="give either input_shape"):
        example_of(network, (1, 28, 28), torch.ones(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"input_shape: \(0, 28, 28\) must be positive"):
        example_of(network, (0, 28, 28), None)
