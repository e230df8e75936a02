import pytest
import torch
from torch import nn

from synflow_pl.networks.blocks import ResidualGain
from synflow_pl.networks.initialise import kaiming, reinitialise


def test_fan_in_and_fan_out_include_the_size_of_the_kernel() -> None:
    # 3 -> 200 channels, 5x5 kernels: fan_in is 3 * 25 = 75, fan_out is 200 * 25 = 5000.
    network = nn.Sequential(nn.Conv2d(3, 200, 5))
    kaiming(network, nn.Conv2d, "fan_in")
    assert network[0].weight.std().item() == pytest.approx((2 / 75) ** 0.5, rel=0.05)
    kaiming(network, nn.Conv2d, "fan_out")
    assert network[0].weight.std().item() == pytest.approx((2 / 5000) ** 0.5, rel=0.05)
    assert not network[0].bias.any()


def test_kaiming_only_initialises_layers_of_the_given_class() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), ResidualGain(2), nn.Flatten(), nn.Linear(2, 2))
    before = network[3].weight.clone()
    kaiming(network, nn.Conv2d, "fan_in")
    assert (network[1].weight == 1).all()
    assert torch.equal(network[3].weight, before)


def test_reset_parameters_of_a_network_overrides_that_of_its_layers() -> None:
    class Ones(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def reset_parameters(self) -> None:
            nn.init.ones_(self.layer.weight)

    network = nn.Sequential(Ones(), nn.Linear(2, 2))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 5)
    reinitialise(network)
    assert (network[0].layer.weight == 1).all()
    assert (network[0].layer.bias.abs() < 1).all()
    assert (network[1].weight.abs() < 1).all()


def test_attention_is_reinitialised() -> None:
    attention = nn.MultiheadAttention(8, 2)
    for parameter in attention.parameters():
        nn.init.constant_(parameter, 5)
    reinitialise(attention)
    assert all((parameter.abs() < 2).all() for parameter in attention.parameters())
    assert not attention.in_proj_bias.any()


def test_a_parameter_without_reset_parameters_is_an_error_and_nothing_is_changed() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))

    network = nn.Sequential(nn.Linear(2, 2), Token())
    before = network[0].weight.clone()
    with pytest.raises(
        ValueError, match=r"1\.token cannot be drawn anew: Token has no reset_parameters\(\)"
    ):
        reinitialise(network)
    assert torch.equal(network[0].weight, before)
