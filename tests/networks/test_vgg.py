import pytest
import torch
from torch import nn
from torchvision import models

from synflow_pl.networks import VGG

# Channels of each convolution in Table 1 of Simonyan & Zisserman 2015, columns A, B, D and E.
CHANNELS = {
    11: [64, 128, 256, 256, 512, 512, 512, 512],
    13: [64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
    16: [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    19: [64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512],
}
# Number of parameters of the convolutions of the ImageNet networks, including biases.
PUBLISHED = {11: 9_220_480, 13: 9_404_992, 16: 14_714_688, 19: 20_024_384}


def on_meta(depth: int, **options: object) -> VGG:
    with torch.device("meta"):
        return VGG(depth, **options)  # type: ignore[arg-type]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("depth", CHANNELS)
def test_the_convolutions_have_the_published_number_of_parameters(depth: int) -> None:
    weights = sum(
        9 * into * out
        for into, out in zip([3, *CHANNELS[depth][:-1]], CHANNELS[depth], strict=True)
    )
    biases = sum(CHANNELS[depth])
    assert weights + biases == PUBLISHED[depth]

    assert count(on_meta(depth, batch_norm=False)) == weights + biases + 512 * 10 + 10


@pytest.mark.parametrize("depth", CHANNELS)
def test_batch_norm_adds_a_gain_and_a_shift_per_channel(depth: int) -> None:
    assert count(on_meta(depth)) - count(on_meta(depth, batch_norm=False)) == 2 * sum(
        CHANNELS[depth]
    )


@pytest.mark.parametrize("depth", CHANNELS)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_convolutions_are_those_of_torchvision(depth: int, batch_norm: bool) -> None:
    with torch.device("meta"):
        theirs = getattr(models, f"vgg{depth}{'_bn' if batch_norm else ''}")().features
    ours = on_meta(depth, batch_norm=batch_norm).features
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    # torchvision has a fifth max pooling. VGG averages over the remaining positions instead.
    assert [type(module) for module in ours] == [type(module) for module in theirs][:-1]
    assert isinstance(theirs[-1], nn.MaxPool2d)


def test_vgg16_has_14_715_584_prunable_weights() -> None:
    weights = [
        m.weight.numel() for m in on_meta(16).modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    ]
    assert len(weights) == 14
    assert sum(weights) == 14_715_584


def test_the_classifier_reads_the_average_over_the_remaining_positions() -> None:
    network = VGG(11).eval()
    features = network.features(torch.zeros(1, 3, 32, 32))
    assert features.shape == (1, 512, 2, 2)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), network.fc(network.features(images).mean((2, 3))))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_features_with_copied_weights_are_those_of_torchvision(batch_norm: bool) -> None:
    theirs = getattr(models, f"vgg11{'_bn' if batch_norm else ''}")().features.eval()
    ours = VGG(11, batch_norm=batch_norm).features.eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(nn.MaxPool2d(2)(ours(images)), theirs(images))


@pytest.mark.parametrize("side", [16, 17, 63])
def test_vgg_accepts_images_of_odd_sizes(side: int) -> None:
    with torch.no_grad():
        assert VGG(11, input_shape=(1, side, side)).eval()(torch.randn(1, 1, side, side)).shape == (
            1,
            10,
        )


@pytest.mark.parametrize("depth", [12, 0, -16])
def test_a_depth_that_was_not_published_is_an_error(depth: int) -> None:
    with pytest.raises(ValueError, match=f"VGG: depth={depth} is not one of 11, 13, 16, 19"):
        VGG(depth)  # type: ignore[arg-type]


def test_images_too_small_to_be_halved_four_times_are_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"VGG: images of \[32, 15\] are too small.*at least 16x16"
    ):
        VGG(11, input_shape=(3, 32, 15))
