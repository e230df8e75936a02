"""Tests of networks of torchvision and timm.

Nothing is downloaded: the weights of a seeded network take the place of trained weights.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from synflow_pl.networks import Timm, TorchVision

timm = pytest.importorskip("timm")


def served(monkeypatch: pytest.MonkeyPatch, name: str) -> nn.Module:
    """Return a network whose weights torchvision reads instead of downloading."""
    torch.manual_seed(5)
    trained = models.get_model(name, **({"init_weights": True} if name == "googlenet" else {}))
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **_: trained.state_dict()
    )
    return trained


def test_torchvision_returns_the_network_of_the_library() -> None:
    torch.manual_seed(0)
    network = TorchVision("resnet18", num_classes=7)
    torch.manual_seed(0)
    original = models.resnet18(num_classes=7)
    assert type(network) is models.ResNet
    assert all(
        torch.equal(tensor, original.state_dict()[name])
        for name, tensor in network.state_dict().items()
    )


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("squeezenet1_1", 64),
        ("googlenet", 64),
        ("inception_v3", 96),
        ("vit_b_32", 32),
        ("maxvit_t", 224),
    ],
)
def test_networks_of_torchvision_return_one_tensor_of_logits_in_train_mode(
    name: str, side: int
) -> None:
    network = TorchVision(name, num_classes=7, input_shape=(3, side, side)).train()
    assert network(torch.randn(2, 3, side, side)).shape == (2, 7)


def test_options_are_passed_to_the_function_of_torchvision() -> None:
    network = TorchVision("resnet18", options={"norm_layer": nn.Identity})
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_weights_are_those_of_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = served(monkeypatch, name).state_dict()
    network = TorchVision(name, weights="IMAGENET1K_V1")
    assert all(torch.equal(tensor, trained[key]) for key, tensor in network.state_dict().items())
    # These weights of GoogLeNet expect another normalisation, which the network applies.
    assert getattr(network, "transform_input", name == "googlenet") == (name == "googlenet")


def test_only_a_classifier_for_other_classes_keeps_its_random_initialisation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = served(monkeypatch, "resnet18").state_dict()
    state = TorchVision("resnet18", num_classes=7, weights="DEFAULT").state_dict()
    assert state["fc.weight"].shape == (7, 512)
    assert all(
        torch.equal(tensor, trained[key])
        for key, tensor in state.items()
        if not key.startswith("fc.")
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vit_b_32",
            {"image_size": 64},
            r"pos_embedding is \(1, 5, 768\) with these options, in the weights it is"
            r" \(1, 50, 768\)",
        ),
        (
            "resnet50",
            {"width_per_group": 128},
            r"layer1\.0\.conv1\.weight is \(128, 64, 1, 1\) .* in the weights it is"
            r" \(64, 64, 1, 1\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_options_are_an_error(
    name: str, options: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, name)
    with pytest.raises(ValueError, match=f"TorchVision: {name}'s .*{message}"):
        TorchVision(name, weights="IMAGENET1K_V1", options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "there is no network 'resnet19'; the nearest name is 'resnet18'"),
        ({"name": "fcn_resnet50"}, "there is no network 'fcn_resnet50'"),  # segmentation
        (
            {"name": "resnet18", "weights": "V1"},
            "resnet18 has no weights 'V1'; there are IMAGENET1K_V1, and DEFAULT",
        ),
        (
            {"name": "resnet18", "input_shape": (1, 28, 28)},
            "read 3 channels, the data has 1; use Timm",
        ),
    ],
)
def test_an_argument_that_torchvision_does_not_support_is_an_error_of_one_sentence(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^TorchVision: .*{message}"):
        TorchVision(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64)])
def test_networks_of_timm_accept_any_number_of_channels_and_image_size(
    name: str, shape: tuple[int, int, int]
) -> None:
    network = Timm(name, num_classes=7, input_shape=shape).eval()
    assert type(network) is type(timm.create_model(name))
    with torch.no_grad():
        assert network(torch.randn(2, *shape)).shape == (2, 7)


def test_options_are_passed_to_the_function_of_timm() -> None:
    assert (
        Timm(
            "vit_tiny_patch16_224", input_shape=(3, 32, 32), options={"patch_size": 4}
        ).patch_embed.num_patches
        == 64
    )


def test_weights_are_those_of_timm_except_for_the_classifier(tmp_path: Path) -> None:
    torch.manual_seed(5)
    trained: dict[str, Tensor] = timm.create_model("resnet10t").state_dict()
    torch.save(trained, tmp_path / "weights.pth")
    local = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    state = Timm("resnet10t.c3_in1k", num_classes=7, pretrained=True, options=local).state_dict()
    assert state["fc.weight"].shape == (7, 512)
    assert all(
        torch.equal(tensor, trained[key])
        for key, tensor in state.items()
        if not key.startswith("fc.")
    )


@pytest.mark.parametrize(
    ("name", "near"), [("resnet19", "resnet18"), ("resnet18.a1_in2k", "resnet18.a1_in1k")]
)
def test_a_name_that_timm_does_not_have_is_an_error_of_one_sentence(name: str, near: str) -> None:
    with pytest.raises(
        ValueError, match=f"^Timm: there is no network '{name}'; the nearest name is '{near}'"
    ):
        Timm(name)


def test_the_error_without_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="'resnet18' needs the package timm; pip install timm"):
        Timm("resnet18")
