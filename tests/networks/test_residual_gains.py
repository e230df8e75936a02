"""Tests of residual gains, which make identity shortcuts prunable."""

import math

import pytest
import torch
from torch import nn

from synflow_pl import prune
from synflow_pl.flow import example_of, is_connected
from synflow_pl.networks import ResNet, TinyResNet
from synflow_pl.networks.blocks import Basic, ResidualGain
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import Magnitude, SynFlow


def gains(network: nn.Module) -> dict[str, ResidualGain]:
    return {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, ResidualGain)
    }


def small(**options: bool) -> ResNet:
    return ResNet(8, width=4, **options)


@pytest.mark.parametrize(
    ("build", "channels"), [(lambda: ResNet(20, residual_gains=True), 3 * 16 + 2 * 32 + 2 * 64)]
)
def test_each_channel_of_each_identity_shortcut_has_a_gain(
    build: type[nn.Module], channels: int
) -> None:
    assert sum(gain.weight.numel() for gain in gains(build()).values()) == channels


def test_networks_have_no_gains_by_default() -> None:
    assert not gains(ResNet(20))
    assert not gains(TinyResNet(18))
    assert len(gains(TinyResNet(18, residual_gains=True))) == 5
    assert len(gains(TinyResNet(50, residual_gains=True))) == 3 + 4 + 6 + 3 - 4


@pytest.mark.parametrize("network", [ResNet, TinyResNet])
def test_initial_gains_do_not_change_the_outputs(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain = network(input_shape=(3, 32, 32)).eval()
    torch.manual_seed(0)
    with_gains = network(residual_gains=True, input_shape=(3, 32, 32)).eval()
    assert all(
        torch.equal(parameter, dict(with_gains.named_parameters())[name])
        for name, parameter in plain.named_parameters()
    )
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(with_gains(images), plain(images))


def test_a_pruned_gain_removes_its_channel_from_the_shortcut() -> None:
    block = Basic(2, 2, stride=1, gain=True).eval()
    nn.init.zeros_(block.conv2.weight)  # the branch is zero, so that only the shortcut is left
    block.shortcut.weight.data[1] = 0
    out = block(torch.ones(1, 2, 3, 3))
    assert (out[0, 0] == 1).all()
    assert not out[0, 1].any()


def test_gains_are_pruned_and_counted_like_weights() -> None:
    plain, with_gains = small(), small(residual_gains=True)
    more = sum(weight.numel() for weight in prunable(with_gains).values()) - sum(
        weight.numel() for weight in prunable(plain).values()
    )
    assert more == 4  # one identity shortcut of 4 channels; the others change the shape
    masks = prune(with_gains, Magnitude(), density=0.5)
    assert masks.kept == masks.total - math.floor(masks.total / 2)
    # Gains of one are larger than nearly every initial weight.
    assert masks["blocks.0.shortcut.weight"].all()


def test_the_score_of_a_gain_is_the_flow_through_the_shortcut() -> None:
    # The flow into a block's sum is the flow through the branch plus the flow through the shortcut
    # (Tanaka et al. 2020, Theorem 1). With weights near zero in the branch, nearly all of it is the
    # shortcut's.
    network = ResNet(8, width=2, residual_gains=True, input_shape=(1, 8, 8)).double()
    nn.init.constant_(network.blocks[0].conv2.weight, 1e-30)
    masks = prune(network, SynFlow(), density=0.5, rounds=1, input_shape=(1, 8, 8))
    assert masks["blocks.0.shortcut.weight"].all()
    assert not masks["blocks.0.conv2.weight"].any()


@pytest.mark.parametrize("density", [0.5, 0.05])
def test_synflow_prunes_gains_and_keeps_the_network_connected(density: float) -> None:
    network = ResNet(20, residual_gains=True)
    masks = prune(network, SynFlow(), density=density, rounds=20, input_shape=(3, 32, 32))
    assert is_connected(network, masks, example_of(network, (3, 32, 32), None))
    kept = sum(int(masks[name].sum()) for name in gains(network))
    assert kept < sum(gain.weight.numel() for gain in gains(network).values())


def test_training_changes_weights_but_not_the_gains() -> None:
    network = small(residual_gains=True)
    masks = prune(network, SynFlow(), density=0.2, rounds=5, input_shape=(3, 32, 32))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    masks.hold(network, optimizer)
    before = network.conv.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(network.conv.weight, before)
    for name, gain in gains(network).items():
        assert torch.equal(gain.weight, masks[name].float())
    assert all(not parameter[~mask].any() for parameter, mask in masks.parameters(network))


def test_excluded_gains_are_not_pruned() -> None:
    masks = prune(
        small(residual_gains=True),
        SynFlow(),
        density=0.1,
        input_shape=(3, 32, 32),
        rounds=3,
        exclude=["*.shortcut.weight"],
    )
    assert "blocks.0.shortcut.weight" not in masks
    assert "blocks.1.shortcut.0.weight" in masks
