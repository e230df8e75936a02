"""Tests that every network of the package must pass, including networks that are added later."""

import inspect
import itertools
import math

import pytest
import torch
from torch import nn

from benchmarks.zoo import ZOO
from synflow_pl import networks
from synflow_pl.networks import FC, VGG, Conv, ResNet, Timm, TinyResNet, TinyVGG, TorchVision
from synflow_pl.networks.initialise import reinitialise

EXTERNAL = {Timm, TorchVision}
NETWORKS = [
    network
    for network in (getattr(networks, name) for name in networks.__all__)
    if network not in EXTERNAL
]

# Number of parameters at the image sizes and numbers of classes of the data sets. Sources are Table
# 6 of He et al. 2016 with 1x1 shortcuts, the convolutions of Simonyan & Zisserman 2015, and Table 1
# of He et al. 2016. The tests of each network derive the numbers.
PARAMETERS = {
    "fc": 119_910, "conv": 260_458,
    "vgg11": 9_225_610, "vgg13": 9_410_122, "vgg16": 14_719_818, "vgg19": 20_029_514,
    "vgg11_bn": 9_231_114, "vgg13_bn": 9_416_010, "vgg16_bn": 14_728_266, "vgg19_bn": 20_040_522,
    "resnet20": 272_474, "resnet32": 466_906, "resnet44": 661_338, "resnet56": 855_770,
    "resnet110": 1_730_714, "resnet1202": 19_424_026, "resnet20_gains": 272_714,
    "wide_resnet20": 1_084_586, "wide_resnet32": 1_860_522, "wide_resnet44": 2_636_458,
    "wide_resnet56": 3_412_394, "wide_resnet110": 6_904_106, "wide_resnet1202": 77_514_282,
    "tiny_vgg11": 12_573_256, "tiny_vgg13": 12_757_768,
    "tiny_vgg16": 18_067_464, "tiny_vgg19": 23_377_160,
    "tiny_vgg11_bn": 12_578_760, "tiny_vgg13_bn": 12_763_656,
    "tiny_vgg16_bn": 18_075_912, "tiny_vgg19_bn": 23_388_168,
    "tiny_resnet18": 11_271_432, "tiny_resnet34": 21_379_592, "tiny_resnet50": 23_910_152,
    "tiny_resnet101": 42_902_280, "tiny_resnet152": 58_545_928, "tiny_resnet18_gains": 11_272_456,
    "wide_tiny_resnet18": 44_790_536, "wide_tiny_resnet34": 85_208_328,
    "wide_tiny_resnet50": 67_236_360, "wide_tiny_resnet101": 125_239_816,
    "wide_tiny_resnet152": 173_011_464,
}  # fmt: skip
LARGE = 20_000_000
SIZED = [
    pytest.param(name, marks=pytest.mark.slow) if count > LARGE else name
    for name, count in PARAMETERS.items()
]

# Distributions of the initial weights of convolutions and of linear layers, by class.
DRAWN: dict[type[nn.Module], tuple[str | float, str | float]] = {
    FC: ("uniform", "uniform"),
    Conv: ("uniform", "uniform"),
    VGG: ("fan_in", "fan_in"),
    ResNet: ("fan_in", "fan_in"),
    TinyVGG: ("fan_out", 0.01),
    TinyResNet: ("fan_out", "uniform"),
}


def deviation(weight: torch.Tensor, drawn: str | float) -> float:
    """Return the standard deviation of initial weights.

    Args:
        weight: The weight.
        drawn: Distribution. "uniform" is PyTorch's default, uniform in +-1/sqrt(fan_in). "fan_in"
            and "fan_out" are Kaiming normal with the gain of ReLU. A number is the deviation.
    """
    kernel = weight[0, 0].numel()
    fan_in, fan_out = weight.shape[1] * kernel, weight.shape[0] * kernel
    if isinstance(drawn, float):
        return drawn
    return math.sqrt(
        {"uniform": 1 / (3 * fan_in), "fan_in": 2 / fan_in, "fan_out": 2 / fan_out}[drawn]
    )


def test_the_tables_of_this_file_list_every_network() -> None:
    assert PARAMETERS.keys() == ZOO.keys()
    assert (
        DRAWN.keys()
        == set(NETWORKS)
        == {type(build()) for build in (FC, Conv)}
        | {b.func for b, _ in ZOO.values() if b not in (FC, Conv)}
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_the_number_of_parameters_and_logits_in_the_table(name: str) -> None:
    build, shape = ZOO[name]
    with torch.device("meta"):
        network = build().eval()
        assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
        assert network(torch.empty(2, *shape)).shape == (2, 200 if shape == (3, 64, 64) else 10)


@pytest.mark.parametrize("name", SIZED)
def test_initial_weights_have_the_distribution_of_the_original_network(name: str) -> None:
    network = ZOO[name][0]()
    for layer, module in network.named_modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            drawn = DRAWN[type(network)][isinstance(module, nn.Linear)]
            expected, weight, bias = (
                deviation(module.weight, drawn),
                module.weight.detach(),
                module.bias,
            )
            # Relative standard error of a standard deviation that is estimated from the weights.
            error = 1 / math.sqrt(2 * weight.numel())
            assert weight.std().item() == pytest.approx(expected, rel=max(6 * error, 0.01)), layer
            assert abs(weight.mean().item()) < 6 * expected / math.sqrt(weight.numel()), layer
            if drawn == "uniform":
                assert weight.abs().max() <= math.sqrt(3) * expected * (1 + 1e-6), layer
                assert bias is None or 0 < bias.abs().max() <= math.sqrt(3) * expected * (
                    1 + 1e-6
                ), layer
            else:
                # A uniform distribution ends at 1.73 standard deviations. One in eighty normal
                # numbers exceeds 2.5.
                assert weight.numel() < 2000 or weight.abs().max() > 2.5 * expected, layer
                assert bias is None or not bias.any(), layer
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()


@pytest.mark.parametrize(
    "name", ["fc", "conv", "vgg11_bn", "resnet20_gains", "tiny_vgg11", "tiny_resnet18_gains"]
)
def test_reinitialising_gives_the_weights_of_a_new_network_with_the_same_seed(name: str) -> None:
    build, shape = ZOO[name]
    network = build()
    network(torch.randn(2, *shape))  # in train mode, so that running statistics change
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.manual_seed(7)
    assert reinitialise(network) is network
    torch.manual_seed(7)
    fresh = build().state_dict()
    assert all(torch.equal(tensor, fresh[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_networks_accept_any_number_of_input_channels(
    network: type[nn.Module], channels: int
) -> None:
    module = network(input_shape=(channels, 32, 32), num_classes=7).eval()
    with torch.no_grad():
        logits = module(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("network", "size"), [*itertools.product(NETWORKS, [(28, 28), (32, 64), (64, 64), (96, 96)])]
)
def test_networks_accept_images_of_any_size(
    network: type[nn.Module], size: tuple[int, int]
) -> None:
    if network is TinyVGG and min(size) < 32:
        pytest.skip("halving five times needs 32x32")
    with torch.device("meta"):
        module = network(input_shape=(1, *size), num_classes=7).eval()
        assert module(torch.empty(2, 1, *size)).shape == (2, 7)


@pytest.mark.parametrize("network", NETWORKS)
def test_initial_weights_depend_on_the_seed_alone(
    network: type[nn.Module],
) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return {name: p.detach() for name, p in network().named_parameters() if p.dim() > 1}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("network", NETWORKS)
def test_sizes_are_arguments_with_default_values(network: type[nn.Module]) -> None:
    parameters = inspect.signature(network).parameters
    assert {"input_shape", "num_classes", "depth"} <= set(parameters)
    assert all(
        parameter.default is not inspect.Parameter.empty for parameter in parameters.values()
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_zero_classes_are_an_error(network: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"^{network.__name__}: num_classes=0 must be at least 1"):
        network(num_classes=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_state_dict_only_has_parameters_and_running_statistics(
    network: type[nn.Module],
) -> None:
    module = network()
    kinds = {name.rpartition(".")[2] for name in module.state_dict()}
    assert kinds <= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
