import pytest
import torch
from torch import nn
from torchvision import models

from synflow_pl.networks import TinyVGG

# Number of parameters of the convolutions of the ImageNet networks, including biases.
CONVOLUTIONS = {11: 9_220_480, 13: 9_404_992, 16: 14_714_688, 19: 20_024_384}
# Millions of parameters for CIFAR-100 with BatchNorm according to weiaicunzai. VGG-19 is left out
# because its number is approximate (39.0, but its layers have 39.3).
STATED = {11: 28.5, 13: 28.7, 16: 34.0}


def on_meta(depth: int, **options: object) -> TinyVGG:
    with torch.device("meta"):
        return TinyVGG(depth, **options)  # type: ignore[arg-type]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("depth", CONVOLUTIONS)
def test_parameters_are_those_of_the_published_convolutions_and_three_linear_layers(
    depth: int,
) -> None:
    # An image of 64x64 halved five times has 2x2 positions of 512 channels. Two hidden layers have
    # 1024 units, and there are 200 classes.
    linear = (2048 * 1024 + 1024) + (1024 * 1024 + 1024) + (1024 * 200 + 200)
    assert count(on_meta(depth, batch_norm=False)) == CONVOLUTIONS[depth] + linear


@pytest.mark.parametrize("depth", STATED)
def test_a_network_with_4096_hidden_units_has_the_parameters_of_weiaicunzai(depth: int) -> None:
    network = on_meta(depth, hidden=4096, input_shape=(3, 32, 32), num_classes=100)
    assert round(count(network) / 1e6, 1) == STATED[depth]


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("depth", CONVOLUTIONS)
def test_layers_for_imagenet_are_those_of_torchvision(depth: int, batch_norm: bool) -> None:
    ours = on_meta(
        depth, batch_norm=batch_norm, hidden=4096, input_shape=(3, 224, 224), num_classes=1000
    )
    with torch.device("meta"):
        theirs = getattr(models, f"vgg{depth}{'_bn' if batch_norm else ''}")()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert [type(module) for module in ours.features] == [
        type(module) for module in theirs.features
    ]
    assert [type(module) for module in ours.classifier] == [
        type(module) for module in theirs.classifier
    ]


@pytest.mark.parametrize(("depth", "batch_norm"), [(11, True), (11, False), (16, True)])
def test_outputs_with_copied_weights_are_those_of_torchvision(depth: int, batch_norm: bool) -> None:
    theirs = getattr(models, f"vgg{depth}{'_bn' if batch_norm else ''}")(num_classes=10)
    theirs.avgpool = nn.Identity()  # for images of 64x64 it would repeat the 2x2 positions
    theirs.classifier[0], theirs.classifier[3], theirs.classifier[6] = (
        nn.Linear(2048, 64),
        nn.Linear(64, 64),
        nn.Linear(64, 10),
    )
    ours = TinyVGG(depth, batch_norm, hidden=64, num_classes=10)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_dropout_is_active_in_train_mode_unless_its_probability_is_zero() -> None:
    images = torch.randn(1, 3, 32, 32)
    dropping = TinyVGG(11, batch_norm=False, input_shape=(3, 32, 32))
    assert not torch.equal(dropping(images), dropping(images))
    whole = TinyVGG(11, batch_norm=False, dropout=0.0, input_shape=(3, 32, 32))
    assert torch.equal(whole(images), whole(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 12}, "depth=12 is not one of 11, 13, 16, 19"),
        ({"input_shape": (3, 64, 31)}, r"images of \[64, 31\] are too small.*at least 32x32"),
        ({"hidden": 0}, "hidden=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
    ],
)
def test_an_invalid_argument_is_an_error_that_names_it(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=f"TinyVGG: {message}"):
        TinyVGG(**options)  # type: ignore[arg-type]
