"""Sums of scores into and out of hidden units, on networks small enough to check by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.flow import example_of, linearise, unit_sums
from synflow_pl.networks import VGG, ResNet


def numbered(
    network: nn.Module, shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Return scores 1, 2, 3, ... for each weight, and their sums at each hidden unit."""
    linear_network = linearise(network, example_of(network, shape, None))
    scores = {
        name: torch.arange(1.0, p.numel() + 1).view_as(p)
        for name, p in network.named_parameters()
        if p.dim() > 1
    }
    return scores, unit_sums(linear_network, scores)


def check(sums: tuple[Tensor, Tensor], into: list[float], out_of: list[float]) -> None:
    torch.testing.assert_close(sums, (torch.tensor(into).double(), torch.tensor(out_of).double()))


def test_sums_of_two_linear_layers_are_those_of_rows_and_columns() -> None:
    # Rows (1 2) (3 4) lead into the two units; columns (1 3 5) (2 4 6) lead out of them.
    _, sums = numbered(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)), (2,))
    assert list(sums) == ["0.weight"]
    check(sums["0.weight"], [3, 7], [9, 12])


def test_the_sum_out_of_a_flattened_channel_includes_all_its_positions() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1)
    )
    _, sums = numbered(network, (1, 2, 4))
    check(sums["0.weight"], [1, 2], [1 + 2, 3 + 4])


def test_a_grouped_convolution_reads_each_channel_in_its_own_group() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 1, 1))
    _, sums = numbered(network, (1, 3, 3))
    # The weights of the second layer are (4, 2): its first two units read the first two channels
    # with (1 2) (3 4), the others read the last two with (5 6) (7 8).
    check(sums["0.weight"], [1, 2, 3, 4], [1 + 3, 2 + 4, 5 + 7, 6 + 8])
    check(sums["1.weight"], [3, 7, 11, 15], [1, 2, 3, 4])


def test_the_sum_out_of_a_unit_with_two_readers_includes_both() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(1, 2), nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.cat([self.left(x), self.right(x)], 1)

    _, sums = numbered(Forked(), (1,))
    assert list(sums) == ["stem.weight"]
    check(sums["stem.weight"], [1, 2], [1 + 1, 2 + 2])


class Shortcut(nn.Module):
    """A residual branch of two layers between two others, with or without the shortcut."""

    def __init__(self, over: bool) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = (nn.Linear(2, 2) for _ in range(4))
        self.over = over

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.second(self.first(x))
        return self.head(branch + x if self.over else branch)


def test_units_on_a_shortcut_are_left_out_and_units_inside_the_branch_are_not() -> None:
    assert list(numbered(Shortcut(over=False), (2,))[1]) == [
        "stem.weight",
        "first.weight",
        "second.weight",
    ]
    assert list(numbered(Shortcut(over=True), (2,))[1]) == ["first.weight"]


def test_sums_of_a_residual_network_are_those_inside_its_blocks() -> None:
    assert list(numbered(ResNet(20), (3, 32, 32))[1]) == [
        f"blocks.{index}.conv1.weight" for index in range(9)
    ]


def test_a_weight_that_is_read_twice_is_left_out_with_the_layer_before_it() -> None:
    shared = nn.Linear(2, 2)
    _, sums = numbered(
        nn.Sequential(nn.Linear(2, 2), shared, shared, nn.Linear(2, 2), nn.Linear(2, 1)), (2,)
    )
    assert list(sums) == ["3.weight"]


def test_synaptic_flow_is_conserved_at_every_hidden_unit_of_vgg() -> None:
    network = VGG(11)
    linear_network = linearise(network, example_of(network, (3, 32, 32), None))
    weights = {name: network.get_parameter(name).detach().abs() for name in linear_network.weights}
    flow = {
        name: weights[name] * gradient
        for name, gradient in linear_network.gradients(weights).items()
    }
    sums = unit_sums(
        linear_network, {name: flow[name] for name, _ in network.named_parameters() if name in flow}
    )
    assert len(sums) == 8
    for into, out_of in sums.values():
        torch.testing.assert_close(into, out_of, rtol=1e-5, atol=0)


def test_unit_sums_leaves_the_random_state_unchanged() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = torch.get_rng_state()
    numbered(network, (2,))
    assert torch.equal(torch.get_rng_state(), before)
