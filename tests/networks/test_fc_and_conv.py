import pytest
import torch
from torch import nn

from synflow_pl.networks import FC, Conv


def weights_and_biases(network: nn.Module) -> tuple[int, int]:
    sizes = {True: 0, False: 0}
    for name, parameter in network.named_parameters():
        sizes[name.endswith("bias")] += parameter.numel()
    return sizes[False], sizes[True]


def test_fc_has_six_layers_of_a_hundred_units_as_in_the_synflow_code() -> None:
    # 28 x 28 pixels, five hidden layers of 100, ten classes.
    weights = 784 * 100 + 4 * 100 * 100 + 100 * 10
    assert weights == 119_400
    assert weights_and_biases(FC()) == (weights, 5 * 100 + 10)
    assert sum(isinstance(module, nn.Linear) for module in FC().modules()) == 6
    assert sum(isinstance(module, nn.ReLU) for module in FC().modules()) == 5


def test_fc_of_depth_one_is_softmax_regression() -> None:
    assert weights_and_biases(FC(depth=1)) == (784 * 10, 10)


def test_fc_has_the_given_depth_and_width_and_image_shape() -> None:
    assert weights_and_biases(FC(input_shape=(3, 2, 2), num_classes=4, depth=2, width=3)) == (
        12 * 3 + 3 * 4,
        3 + 4,
    )


def test_conv_has_two_convolutions_of_32_channels_as_in_the_synflow_code() -> None:
    # 3x3 kernels, 1 -> 32 -> 32 channels. The image keeps its size, so the linear layer has
    # 32 * 28 * 28 inputs.
    weights = 9 * 1 * 32 + 9 * 32 * 32 + 32 * 28 * 28 * 10
    assert weights == 260_384
    assert weights_and_biases(Conv()) == (weights, 32 + 32 + 10)
    assert sum(isinstance(module, nn.ReLU) for module in Conv().modules()) == 2


def test_conv_has_the_given_depth_and_width_on_images_that_are_not_square() -> None:
    assert weights_and_biases(Conv(input_shape=(3, 4, 5), num_classes=7, depth=1, width=2)) == (
        9 * 3 * 2 + 2 * 20 * 7,
        2 + 7,
    )


@pytest.mark.parametrize("network", [FC, Conv])
@pytest.mark.parametrize("nonlinearity", [nn.Tanh, nn.GELU])
def test_the_nonlinearity_is_an_argument(
    network: type[nn.Module], nonlinearity: type[nn.Module]
) -> None:
    modules = list(network(nonlinearity=nonlinearity).modules())
    default = list(network().modules())
    assert not any(isinstance(module, nn.ReLU) for module in modules)
    assert sum(isinstance(m, nonlinearity) for m in modules) == sum(
        isinstance(m, nn.ReLU) for m in default
    )


@pytest.mark.parametrize("network", [FC, Conv])
def test_a_network_without_nonlinearity_and_biases_is_linear(network: type[nn.Module]) -> None:
    linear = network(input_shape=(1, 4, 4), nonlinearity=nn.Identity)
    for name, parameter in linear.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    one, two = torch.randn(2, 1, 1, 4, 4)
    torch.testing.assert_close(linear(one + 2 * two), linear(one) + 2 * linear(two))


@pytest.mark.parametrize("network", [FC, Conv])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"depth": 0}, "depth=0"), ({"width": 0}, "width=0"), ({"width": -3}, "width=-3")],
)
def test_a_size_below_one_is_an_error_that_names_it(
    network: type[nn.Module], sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{network.__name__}: .*{message}.* must .*at least 1"):
        network(**sizes)
