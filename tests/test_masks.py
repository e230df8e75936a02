from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from synflow_pl import Masks
from synflow_pl.prunable_parameters import prunable


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def masks_of(network: nn.Module, density: float = 0.5) -> Masks:
    generator = torch.Generator().manual_seed(1)
    return Masks(
        {
            name: torch.rand(p.shape, generator=generator) < density
            for name, p in prunable(network).items()
        }
    )


def test_only_weights_of_linear_convolution_and_attention_layers_are_prunable() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.attention = nn.MultiheadAttention(4, 2)
            self.norm = nn.LayerNorm(4)
            self.up = nn.ConvTranspose2d(4, 2, 3)
            self.head = nn.Linear(4, 5)

    assert list(prunable(Mixed())) == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "up.weight",
        "head.weight",
    ]


def test_a_weight_shared_with_an_embedding_is_not_prunable() -> None:
    network = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "hidden": nn.Linear(4, 4), "head": nn.Linear(4, 5)}
    )
    network["head"].weight = network["embedding"].weight
    assert list(prunable(network)) == ["hidden.weight"]


def test_a_shared_weight_is_prunable_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert list(prunable(nn.Sequential(first, second))) == ["0.weight"]


def test_excluded_layers_are_not_prunable_and_a_pattern_without_a_match_is_an_error() -> None:
    assert list(prunable(small(), exclude=["2.*"])) == ["0.weight"]
    with pytest.raises(
        ValueError, match=r"exclude: '3\.\*' matches no prunable parameter; the nearest is"
    ):
        prunable(small(), exclude=["3.*"])
    with pytest.raises(ValueError, match="no prunable weight left after exclude"):
        prunable(small(), exclude=["*"])
    with pytest.raises(ValueError, match="ReLU has no prunable weight"):
        prunable(nn.ReLU())


def test_the_error_about_no_prunable_weights_names_the_classes_with_parameters() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 4))

    with pytest.raises(
        ValueError,
        match=r"Sequential has no prunable weight; .*its parameters are in Dense \(64\), "
        r"Embedding \(12\)$",
    ):
        prunable(nn.Sequential(nn.Embedding(3, 4), Dense(), Dense(), nn.ReLU()))


def test_density_counts_weights_and_not_followers() -> None:
    masks = Masks(
        {"w": torch.tensor([[True, False], [False, False]]), "b": torch.tensor([True, False])},
        followers=["b"],
    )
    assert (masks.kept, masks.total, masks.density) == (1, 4, 0.25)
    assert masks.weights == ["w"]
    assert list(masks) == ["w", "b"]
    assert masks["b"].tolist() == [True, False]


def test_applying_masks_sets_removed_weights_to_zero_and_keeps_the_others() -> None:
    network = small()
    before = copy.deepcopy(network)
    masks = masks_of(network)
    masks.apply(network)
    for name, mask in masks.items():
        weight, old = network.get_parameter(name), before.get_parameter(name)
        assert torch.equal(weight[mask], old[mask])
        assert torch.equal(weight[~mask], torch.zeros_like(weight[~mask]))
        assert not torch.signbit(weight[~mask]).any()


def test_masks_of_another_network_are_an_error_before_any_parameter_changes() -> None:
    network = small()
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(
        ValueError, match=r"the mask of '0\.weight' has shape \(2, 2\), the parameter \(3, 4\)"
    ):
        Masks(
            {
                "2.weight": torch.zeros(2, 3, dtype=torch.bool),
                "0.weight": torch.zeros(2, 2, dtype=torch.bool),
            }
        ).apply(network)
    with pytest.raises(
        ValueError, match=r"'1\.weight', which Sequential does not have \(nearest: '2\.weight'\)"
    ):
        Masks({"1.weight": torch.zeros(3, 4, dtype=torch.bool)}).apply(network)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_invalid_masks_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"the mask of 'w' is torch.float32, expected torch.bool"):
        Masks({"w": torch.ones(2)})
    with pytest.raises(ValueError, match="followers without a mask"):
        Masks({"w": torch.ones(2, dtype=torch.bool)}, followers=["b"])
    with pytest.raises(ValueError, match="no weight is masked"):
        Masks({})


def test_saved_masks_load_equal_and_in_the_same_order(tmp_path: Path) -> None:
    masks = Masks(
        {
            "z": torch.tensor([True, False]),
            "a": torch.tensor([[False]]),
            "bias": torch.tensor([True]),
        },
        followers=["bias"],
    )
    masks.save(tmp_path / "deep" / "masks.safetensors")
    loaded = Masks.load(tmp_path / "deep" / "masks.safetensors")
    assert list(loaded) == ["z", "a", "bias"]
    assert loaded.followers == {"bias"}
    assert all(torch.equal(loaded[name], masks[name]) for name in masks)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["masks.safetensors"]


def test_loading_a_file_without_masks_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no masks at"):
        Masks.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    with pytest.raises(ValueError, match=r"text.safetensors' is not a file of masks"):
        Masks.load(tmp_path / "text.safetensors")


def test_a_failing_save_keeps_the_old_file_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "masks.safetensors"
    Masks({"w": torch.tensor([True])}).save(path)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        Masks({"w": torch.tensor([False])}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_zeros_stay_zero_after_every_step_of_a_training_loop(name: str) -> None:
    network = small()
    # A step before the masks are applied gives removed weights a momentum.
    optimizer = OPTIMIZERS[name](network.parameters())
    step(network, optimizer)
    masks = masks_of(network)
    masks.apply(network)
    hold = masks.hold(network, optimizer)
    for index in range(20):
        step(network, optimizer, accumulate=1 + index % 2)
        assert all(not network.get_parameter(n)[~mask].any() for n, mask in masks.items())
    assert all(network.get_parameter(n)[mask].any() for n, mask in masks.items())
    hold.remove()
    step(network, optimizer)
    assert any(network.get_parameter(n)[~mask].any() for n, mask in masks.items())


def test_kept_weights_train_as_if_the_mask_were_in_the_forward_pass() -> None:
    # The reference multiplies by the mask in the forward pass. In float64 the two agree to rounding
    # errors.
    for name, make in OPTIMIZERS.items():
        held = small().double()
        masks = masks_of(held)
        masks.apply(held)
        reference = copy.deepcopy(held)
        optimizer, other = make(held.parameters()), make(reference.parameters())
        masks.hold(held, optimizer)
        for index in range(10):
            images = torch.randn(
                8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(index)
            )
            optimizer.zero_grad()
            held(images).square().sum().backward()
            optimizer.step()
            other.zero_grad()
            masked = {n: reference.get_parameter(n) * mask for n, mask in masks.items()}
            torch.func.functional_call(reference, masked, images).square().sum().backward()
            other.step()
        for n, mask in masks.items():
            torch.testing.assert_close(
                held.get_parameter(n)[mask],
                reference.get_parameter(n)[mask],
                rtol=1e-12,
                atol=1e-12,
                msg=name,
            )


def test_a_clipped_norm_counts_kept_weights_only() -> None:
    network = small()
    masks = masks_of(network)
    hold = masks.hold(network, torch.optim.SGD(network.parameters(), lr=0.1))
    network(torch.randn(8, 4)).square().sum().backward()
    kept = [network.get_parameter(n).grad[mask] for n, mask in masks.items()]
    expected = torch.cat([*kept, network[0].bias.grad, network[2].bias.grad]).norm()
    hold.mask_gradients()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(network.parameters(), 1e9), expected)


def test_an_infinite_update_of_a_removed_weight_gives_zero() -> None:
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    masks = Masks({"0.weight": torch.tensor([[True, False]])})
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    masks.hold(network, optimizer)
    network[0].weight.grad = torch.tensor([[0.0, float("inf")]])
    optimizer.step()
    assert network[0].weight[0, 1] == 0


def step(network: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> None:
    optimizer.zero_grad()
    for _ in range(accumulate):
        network(torch.randn(8, 4)).square().sum().backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


class Wrapper:
    """Wrapper of an optimiser that runs none of its own hooks, as those of other libraries."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


def test_the_optimiser_inside_a_wrapper_keeps_zeros() -> None:
    from pytorch_lightning.core.optimizer import LightningOptimizer

    for wrap in (Wrapper, LightningOptimizer, lambda optimizer: Wrapper(Wrapper(optimizer))):
        network = nn.Linear(4, 3)
        masks = Masks({"weight": torch.rand(3, 4) < 0.5})
        masks.apply(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        masks.hold(network, wrap(optimizer))
        for _ in range(3):
            network(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        assert not bool(network.weight[~masks["weight"]].any())
        assert bool(network.weight[masks["weight"]].all())


@pytest.mark.parametrize("optimizer", [3, None, nn.Linear(2, 2), "sgd"])
def test_anything_but_an_optimiser_is_refused(optimizer: object) -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"^optimizer: a \w+ is no torch.optim.Optimizer and wraps"):
        Masks({"weight": torch.ones(2, 2, dtype=torch.bool)}).hold(network, optimizer)  # type: ignore[arg-type]
