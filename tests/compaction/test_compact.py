"""Tests that the smaller network computes the same function as the pruned one."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.zoo import ZOO
from synflow_pl import Compaction, Masks, compact, prune
from synflow_pl.compaction import freeze
from synflow_pl.flow import example_of
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import Magnitude, SynFlow
from tests.compaction.checked import check, size


def masks_of(network: nn.Module, **masks: list) -> Masks:
    """Return masks of ones except for those given, by name with ``__`` in place of the dot."""
    chosen = {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, weight in prunable(network).items()
    }
    for name, mask in masks.items():
        name = name.replace("__", ".")
        chosen[name] = torch.tensor(mask, dtype=torch.bool).view_as(chosen[name])
    return Masks(chosen)


def filled(network: nn.Module, **tensors: list) -> nn.Module:
    state = network.state_dict()
    for name, values in tensors.items():
        tensor = state[name.replace("__", ".")]
        tensor.copy_(torch.tensor(values, dtype=tensor.dtype).view_as(tensor))
    return network.double().eval()


# -- examples computed by hand


def test_a_unit_that_nothing_reads_is_removed() -> None:
    network = filled(
        nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)),
        **{"0__weight": [1, 2, 3], "2__weight": [1, 1, 1]},
    )
    small = compact(network, masks_of(network, **{"2__weight": [1, 0, 1]}), input_shape=(1,))
    assert [tuple(parameter.shape) for parameter in small.parameters()] == [
        (2, 1),
        (2,),
        (1, 2),
        (1,),
    ]
    assert small[0].weight.flatten().tolist() == [1, 3]
    assert (small[0].out_features, small[2].in_features) == (2, 2)


def test_a_constant_is_folded_into_the_bias_of_a_linear_layer() -> None:
    # Unit 1 reads nothing, so it is relu(5) = 5. The new bias is 1 + 3 * 5 = 16.
    network = filled(
        nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)),
        **{"0__weight": [1, 1], "0__bias": [0, 5], "2__weight": [2, 3], "2__bias": [1]},
    )
    small = compact(network, masks_of(network, **{"0__weight": [1, 0]}), input_shape=(1,))
    assert small[2].weight.flatten().tolist() == [2]
    assert small[2].bias.tolist() == [16]
    assert small(torch.tensor([[4.0]], dtype=torch.float64)).item() == 2 * 4 + 16


def test_a_shift_of_batchnorm_is_folded_into_an_unpadded_convolution_without_a_bias() -> None:
    # Channel 1 is its shift 2, which two weights of 3 read: 12 at every position.
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 1, (1, 2), bias=False)
    )
    filled(network, **{"1__bias": [0, 2], "2__weight": [1, 1, 3, 3]})
    small = compact(network, masks_of(network, **{"0__weight": [1, 0]}), input_shape=(1, 4, 4))
    assert small[2].bias.tolist() == [12]
    assert (small[0].out_channels, small[1].num_features, small[2].in_channels) == (1, 1, 1)


def padded() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1))
    return filled(network, **{"0__bias": [0, 1], "2__weight": [1] * 18})


def test_a_constant_that_is_read_through_padding_is_kept_and_a_note_says_why() -> None:
    network = padded()
    compaction = Compaction(
        network, masks_of(network, **{"0__weight": [1, 0]}), example_of(network, (1, 4, 4), None)
    )
    assert compaction.network[0].out_channels == 2
    assert compaction.notes == (
        "1 units that hold a constant which cannot be folded (padding makes it differ from place"
        " to place)",
    )
    assert "Kept: 1 units" in compaction.table()


def test_a_constant_is_folded_if_no_kept_weight_reads_padding() -> None:
    # Only the centre of the kernel that reads the constant is kept.
    network = padded()
    masks = masks_of(
        network, **{"0__weight": [1, 0], "2__weight": [1] * 9 + [0] * 4 + [1] + [0] * 4}
    )
    small = compact(network, masks, input_shape=(1, 4, 4))
    assert small[0].out_channels == 1
    assert small[2].bias.item() == pytest.approx(network[2].bias.item() + 1)


def test_a_unit_that_is_read_only_by_weights_on_padding_is_removed() -> None:
    # On an image of one pixel, only the centre of a padded 3x3 kernel reads the image.
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1)).double().eval()
    masks = masks_of(network, **{"1__weight": [1] * 9 + [1] * 4 + [0] + [1] * 4})
    assert compact(network, masks, input_shape=(1, 1, 1))[0].out_channels == 1


def test_every_layer_keeps_at_least_one_unit() -> None:
    # The middle layer has no kept weight, so the output is the sum of its biases, 7.
    network = filled(
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1)),
        **{"1__bias": [3, 4], "2__weight": [1, 1], "2__bias": [0]},
    )
    small = compact(network, masks_of(network, **{"1__weight": [0] * 6}), input_shape=(2,))
    assert [layer.out_features for layer in small] == [1, 1, 1]
    assert small(torch.randn(5, 2, dtype=torch.float64)).tolist() == [[7.0]] * 5


def test_for_training_a_bias_is_constant_only_if_its_mask_holds_it_at_zero() -> None:
    network = filled(
        nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)), **{"0__bias": [0, 0, 5]}
    )
    masks = masks_of(network, **{"0__weight": [1, 0, 0]})
    inputs = example_of(network, (1,), None)
    compaction = Compaction(network, masks, inputs, training=True)
    assert compaction.network[0].out_features == 3  # the biases of two units may be trained
    held = Masks({**masks, "0.bias": torch.tensor([True, False, True])}, ["0.bias"])
    assert Compaction(network, held, inputs, training=True).network[0].out_features == 2


def test_masks_are_cut_to_the_smaller_network() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    masks = masks_of(network, **{"0__weight": [1, 0, 1, 1, 0, 1], "2__weight": [1, 0, 1]})
    compaction = Compaction(network, masks, example_of(network, (2,), None), training=True)
    assert compaction.masks["0.weight"].tolist() == [[True, False], [False, True]]
    assert compaction.masks["2.weight"].tolist() == [[True, True]]
    assert compaction.cut("2.weight", torch.tensor([[7, 9, 8]])).tolist() == [[7, 8]]


def test_a_unit_that_the_input_cannot_reach_is_frozen_and_then_removed() -> None:
    # Unit 1 of the first layer reads nothing. Unit 1 of the second layer reads that unit alone, so
    # the input cannot reach it either.
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(),
        nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1),
    )  # fmt: skip
    masks = masks_of(
        network,
        **{"0__weight": [1] * 9 + [0] * 9, "3__weight": [1] * 9 + [0] * 9 + [0] * 9 + [1] * 9},
    )
    inputs = example_of(network, (1, 4, 4), None)
    held = freeze(network, masks, inputs)
    assert {name: held[name].tolist() for name in held.followers} == {
        "0.bias": [True, False],
        "1.weight": [True, False],
        "1.bias": [True, False],
        "3.bias": [True, False],
    }
    assert held.density == masks.density
    assert Compaction(network, masks, inputs, training=True).network[0].out_channels == 2
    small = Compaction(network, held, inputs, training=True).network
    assert [small[index].out_channels for index in (0, 3, 5)] == [1, 1, 1]


def test_compacting_does_not_change_the_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).train()
    masks = masks_of(network, **{"0__weight": [1] * 18 + [0] * 18})
    state = copy.deepcopy(network.state_dict())
    small = compact(network, masks, input_shape=(1, 4, 4))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert network[0].weight.shape == (4, 1, 3, 3)
    assert small.training
    assert all(type(a) is type(b) for a, b in zip(network.modules(), small.modules(), strict=True))


def test_nothing_is_removed_if_the_forward_pass_fixes_sizes_and_a_note_says_so() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.second(self.first(images).view(-1, 16))

    network = Fixed().double()
    masks = masks_of(network, second__weight=[1] * 12 + [0] * 4 + [1] * 12 + [0] * 4)
    compaction = Compaction(network, masks, example_of(network, (1, 4, 4), None))
    assert compaction.network.first.out_channels == 4
    assert compaction.notes[0].startswith("nothing was taken out: ")


def test_units_are_removed_outside_a_module_that_cannot_be_smaller() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention = (
                nn.Linear(3, 4),
                nn.MultiheadAttention(4, 2, batch_first=True),
            )
            self.after = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 2))

        def forward(self, words: Tensor) -> Tensor:
            words = self.before(words)
            return self.after(self.attention(words, words, words, need_weights=False)[0])

    network = Attending().double().eval()
    masks = masks_of(
        network,
        after__2__weight=[[1] * 6 + [0] * 4] * 2,
        attention__in_proj_weight=[[0, 1, 1, 1]] * 12,
    )
    compaction = Compaction(network, masks, (torch.ones(1, 5, 3, dtype=torch.float64),))
    assert (compaction.network.before.out_features, compaction.network.after[0].out_features) == (
        4,
        6,
    )
    assert any("MultiheadAttention.forward fails" in note for note in compaction.notes)


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_an_input_of_integers_is_not_a_constant(kind: str) -> None:
    class Average(nn.Module):
        def forward(self, numbers: Tensor) -> Tensor:
            return numbers.mean(1) if kind == "words" else numbers / 255.0

    first = nn.Embedding(20, 6) if kind == "words" else nn.Identity()
    network = nn.Sequential(first, Average(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    numbers = (
        torch.arange(60)
        .remainder(20)
        .view(10, 6)
        .to(torch.int64 if kind == "words" else torch.uint8)
    )
    masks = masks_of(network, **{"4__weight": [[1] * 6 + [0] * 2] * 4})
    small = compact(network, masks, numbers[:1])
    assert small[2].out_features == 6
    masks.apply(network)
    assert torch.allclose(small(numbers), network(numbers), rtol=0, atol=1e-6)
    reached = freeze(network, masks, (numbers[:1],))
    assert all(reached[name].all() for name in reached.followers)


def test_compacting_draws_no_random_numbers() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = torch.get_rng_state()
    compact(network, masks_of(network, **{"1__weight": [1, 0, 1]}), input_shape=(2,))
    assert torch.equal(torch.get_rng_state(), before)


# -- networks of many kinds with random masks


class Residual(nn.Module):
    """Two residual blocks, one with an identity shortcut and one with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.a, self.na, self.b, self.nb = (
            nn.Conv2d(5, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 5, 1),
            nn.BatchNorm2d(5),
        )
        self.c, self.skip = nn.Conv2d(5, 4, 3, 2, 1, bias=False), nn.Conv2d(5, 4, 1, 2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).relu()
        x = (x + self.nb(self.b(self.na(self.a(x)).relu()))).relu()
        x = (self.c(x) + self.skip(x)).relu()
        return self.head(x.mean((2, 3)))


class Concatenated(nn.Module):
    """Concatenated channels with a BatchNorm over both parts, slicing and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = (
            nn.Conv2d(2, 4, 1),
            nn.Conv2d(4, 3, 3, padding=1),
            nn.BatchNorm2d(7),
        )
        self.c, self.head = nn.Conv2d(7, 4, 3), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.a(images).relu()
        x = self.norm(torch.cat([x, self.b(x).tanh()], 1)).relu()
        return self.head(
            nn.functional.max_pool2d(self.c(x), 2, 1, ceil_mode=True)[:, :, :2, :2].flatten(1)
        )


class Shared(nn.Module):
    """A layer that is used twice and whose weight another layer shares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.again, self.head = (
            nn.Linear(8, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )
        self.again.weight = self.twice.weight

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1)).relu()
        return self.head(self.again(self.twice(self.twice(x).relu()).relu()).relu())


class Gated(nn.Module):
    """Squeeze and excitation, a depthwise convolution and a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.depthwise, self.norm = (
            nn.Conv2d(2, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.BatchNorm2d(6),
        )
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.grouped, self.head = nn.Conv2d(6, 6, 3, groups=3, bias=False), nn.Conv2d(6, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.norm(self.depthwise(self.a(images).relu())))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.grouped(x)).flatten(1)


class Normalised(nn.Module):
    """GroupNorm, LayerNorm and a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)
        self.layer, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(images)).relu()).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.down(nn.functional.gelu(self.up(self.layer(x))))).mean(1))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(6, 5, 1), nn.ELU(), nn.Flatten(),
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 3),
    )  # fmt: skip


def up() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.Sigmoid(),
        nn.ConvTranspose2d(5, 4, 2, 2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
    )


class Bounded(nn.Module):
    """Two stacked branches with a parameter per channel: ``fmax``, which drops NaN, and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gain, self.last = nn.Conv2d(2, 6, 1), nn.PReLU(6), nn.Conv2d(6, 2, 3)
        self.bound = nn.Parameter(torch.linspace(-1, 1, 6).view(6, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        signal = self.first(images)
        ways = torch.stack([torch.fmax(self.bound, signal), self.gain(signal)], 1).sum(1)
        return self.last(
            nn.functional.interpolate(ways, scale_factor=2, mode="nearest-exact")
        ).flatten(1)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (2, 4, 4)),
    "residual": (Residual, (2, 5, 5)),
    "concatenated": (Concatenated, (2, 5, 5)),
    "shared": (Shared, (2, 2, 2)),
    "gated": (Gated, (2, 4, 4)),
    "normalised": (Normalised, (2, 3, 3)),
    "up": (up, (2, 3, 3)),
    "bounded": (Bounded, (2, 3, 3)),
}


def random_masks(network: nn.Module, seed: int, weights: float, units: float) -> Masks:
    """Return masks that keep weights, and rows and columns of weights, at random.

    Args:
        network: The network.
        seed: Seed of the masks.
        weights: Probability of keeping a weight.
        units: Probability of keeping a row or a column.
    """
    generator = torch.Generator().manual_seed(seed)

    def kept(*shape: int, probability: float) -> Tensor:
        return torch.rand(*shape, generator=generator) < probability

    masks = {}
    for name, weight in prunable(network).items():
        rest = [1] * (weight.dim() - 2)
        rows, columns = (
            kept(weight.shape[0], 1, *rest, probability=units),
            kept(1, weight.shape[1], *rest, probability=units),
        )
        masks[name] = kept(*weight.shape, probability=weights) & rows & columns
    return Masks(masks)


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 2**20),
    weights=st.sampled_from([1.0, 0.8, 0.5]),
    units=st.sampled_from([0.8, 0.95]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_smaller_networks_of_many_kinds_compute_the_same_function(
    kind: str, seed: int, weights: float, units: float
) -> None:
    torch.manual_seed(seed)
    build, shape = KINDS[kind]
    network = build().double()
    checked = check(network, random_masks(network, seed, weights, units), shape)
    assume(checked.spread > 1e-6)  # the output depends on the input
    checked.hold()


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_many_kinds_get_smaller(kind: str) -> None:
    build, shape = KINDS[kind]
    smaller = 0
    for seed in range(20):
        torch.manual_seed(seed)
        network = build().double()
        whole = size(network)
        checked = check(network, random_masks(network, seed, 0.8, 0.8), shape)
        if checked.spread > 1e-6:
            checked.hold()
            smaller += size(checked.compaction.network) < whole
    assert smaller >= 5


def test_a_group_norm_keeps_its_channels_and_a_note_says_why() -> None:
    network = Normalised().double()
    masks = masks_of(network, b__weight=[1, 1, 1, 0] * 4)
    compaction = Compaction(network, masks, example_of(network, (2, 3, 3), None))
    assert compaction.network.norm.num_channels == 4
    assert (
        "4 units whether they are needed or not (GroupNorm's statistics, which would change)"
        in compaction.notes
    )


# -- the zoo


def check_zoo(name: str, densities: tuple[float, ...]) -> None:
    """Check compaction of a network of the zoo at each density.

    SynFlow prunes in ten rounds from one density to the next, which is cheaper than the published
    number of rounds.
    """
    torch.manual_seed(0)
    build, shape = ZOO[name]
    network, masks, parameters = build(), None, []
    whole = size(network)
    for density in densities:
        masks = prune(
            network, SynFlow(), density=density, masks=masks, rounds=10, input_shape=shape
        )
        # Random biases may switch off the few units that all paths pass, so repeat the draw.
        for _ in range(5):
            checked = check(
                copy.deepcopy(network).double(), masks, shape, count=16 if whole < 4e7 else 6
            )
            if checked.spread > 1e-6:
                break
        checked.hold()
        parameters.append(size(checked.compaction.network))
        # Several copies of a large network in float64 would wait for the next collection.
        del checked
        gc.collect()
    assert parameters == sorted(parameters, reverse=True)
    assert parameters[-1] < whole / 2


@pytest.mark.parametrize("name", ["fc", "conv", "resnet20_gains"])
def test_smaller_versions_of_small_zoo_networks_compute_the_same_function(name: str) -> None:
    check_zoo(name, (0.1, 0.01))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if not name.endswith("resnet1202")])
def test_the_smaller_version_of_every_zoo_network_computes_the_same_function(name: str) -> None:
    check_zoo(name, (0.1, 0.01, 0.001))


def test_a_network_in_channels_last_is_compacted_as_one_in_the_default_format() -> None:
    """Pooling to one position gives other strides there, which move no entry."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    masks = prune(network, Magnitude(), granularity="unit", density=0.3, input_shape=(3, 8, 8))
    expected = Compaction(network, masks, (torch.ones(1, 3, 8, 8),), training=True)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    found = Compaction(last, masks, (torch.ones(1, 3, 8, 8),), training=True)
    assert found.network[7].in_features == expected.network[7].in_features < 16
    assert found.masks.total == expected.masks.total
    assert not any("as_strided" in note for note in found.notes)
