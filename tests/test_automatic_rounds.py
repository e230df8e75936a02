"""Pruning with ``rounds="auto"``: what a round removes, the target, and paths that remain."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from synflow_pl import Masks, diagnose, prune
from synflow_pl.networks import VGG
from synflow_pl.pruners import (
    SNIP,
    Inverted,
    Magnitude,
    Pruner,
    PruningState,
    Saliency,
    Shuffled,
    SynFlow,
    SynFlowL2,
    SynFlowL2AsPublished,
)
from synflow_pl.pruners.recording import RecordingPruner
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import as_density, kept_weights

NEEDED = re.compile(
    r"keeps (\d+) weights?, but (\d+) weights? (?:is|are) left there, each of which"
)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.second(self.first(x).relu())).relu()
        return self.head(x.mean((2, 3)))


class Branching(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, width, 3, bias=False)
        self.right = nn.Conv2d(2, width + 1, 3, bias=False)
        self.merge = nn.Conv2d(2 * width + 1, width, 1, bias=False)
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.head(max_pool2d(self.merge(x).relu(), 2).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 2 * width, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(2 * width, 2 * width, 3, groups=2, bias=False)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, groups=2 * width, bias=False)
        self.head = nn.Linear(2 * width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(self.stem(x).relu()).relu())
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """Three applications of one layer, so that a score may exceed the total flow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width, bias=False)
        self.again = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.again(x).relu()
        return self.head(x)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 2 * width)
        self.attention = nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.attention(x, x, x)[0].mean(1))


def chain(width: int) -> nn.Module:
    layers = (nn.Linear(4, width), nn.Linear(width, width + 1), nn.Linear(width + 1, 3))
    for layer in layers:
        nn.init.zeros_(layer.bias)
    first, second, third = layers
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (4,)),
    "residual": (Residual, (2, 6, 6)),
    "branching": (Branching, (2, 6, 6)),
    "grouped": (Grouped, (2, 7, 7)),
    "shared": (Shared, (4,)),
    "attention": (Attention, (5, 4)),
}


def draw(name: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of random width with random weights, and the shape of its input."""
    torch.manual_seed(seed)
    build, shape = NETWORKS[name]
    return build(2 + seed % 3), shape


def brute_force(
    network: nn.Module, shape: tuple[int, ...], keep: Mapping[str, int] | int, margin: float
) -> tuple[dict[str, Tensor], list[int]]:
    """Prune by autograd on |w|, full sorts and cumulative sums in float64.

    Args:
        network: Network without biases, with ReLU only.
        shape: Shape of its input.
        keep: Number of weights kept in each layer, or in the whole network.
        margin: Fraction of the total flow that a round may remove.

    Returns:
        The masks, and the number of weights kept after each round.
    """
    positive = copy.deepcopy(network).double()
    weights = {name: p for name, p in positive.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        for parameter in weights.values():
            parameter.abs_()
    names = list(weights)
    rankings = [names] if isinstance(keep, int) else [[name] for name in names]
    goals = [keep] if isinstance(keep, int) else [keep[name] for name in names]
    kept: list[int] = []

    def count(ranking: list[str]) -> int:
        return sum(int(weights[name].count_nonzero()) for name in ranking)

    def total_flow() -> Tensor:
        return positive(torch.ones(1, *shape, dtype=torch.float64)).sum()

    @torch.no_grad()
    def remove_one(order_of: list[Tensor], flat_of: list[Tensor]) -> None:
        """Remove the lowest score without which flow is left."""
        for _, index, rank in sorted(
            (float(flat[position]), -index, rank)
            for index, (order, flat) in enumerate(zip(order_of, flat_of, strict=True))
            for rank, position in enumerate(order)
            if flat[position].isfinite()
        ):
            ranking, position = open_[-index][0], int(order_of[-index][rank])
            for name in ranking:
                if position < weights[name].numel():
                    break
                position -= weights[name].numel()
            value = weights[name].view(-1)[position].clone()
            weights[name].view(-1)[position] = 0
            if float(total_flow()) > 0:
                return
            weights[name].view(-1)[position] = value
        raise AssertionError("every path needs all weights that are left")

    while any(count(ranking) > goal for ranking, goal in zip(rankings, goals, strict=True)):
        flow = total_flow()
        gradients = torch.autograd.grad(flow, [weights[name] for name in names])
        scores = {
            name: (weights[name] * gradient).detach()
            for name, gradient in zip(names, gradients, strict=True)
        }
        left = margin * float(flow.detach())
        open_ = [pair for pair in zip(rankings, goals, strict=True) if count(pair[0]) > pair[1]]
        removed: list[Tensor] = []
        orders: list[Tensor] = []
        flats: list[Tensor] = []
        for index, (ranking, goal) in enumerate(open_):
            flat = torch.cat(
                [
                    torch.where(weights[name] > 0, scores[name], torch.inf).flatten()
                    for name in ranking
                ]
            )
            # A stable sort of the reversed scores puts the later of equal scores first.
            order = flat.numel() - 1 - flat.flip(0).argsort(stable=True)
            sums = flat[order].cumsum(0)
            fitting = int((sums <= left / (len(open_) - index)).sum())
            fitting = min(fitting, count(ranking) - goal)
            left -= float(sums[fitting - 1]) if fitting else 0.0
            removed.append(order[:fitting])
            orders.append(order)
            flats.append(flat)
        if not any(indices.numel() for indices in removed):
            remove_one(orders, flats)
        with torch.no_grad():
            for (ranking, _), indices in zip(open_, removed, strict=True):
                mask = torch.ones(sum(weights[name].numel() for name in ranking))
                mask[indices] = 0
                for name in ranking:
                    part, mask = mask[: weights[name].numel()], mask[weights[name].numel() :]
                    weights[name].mul_(part.view_as(weights[name]))
        kept.append(count(names))
    return {name: weight != 0 for name, weight in weights.items()}, kept


def automatic(
    network: nn.Module, pruner: Pruner | None = None, **options: Any
) -> tuple[Masks, list[float]]:
    """Prune a copy of a network with ``rounds="auto"``; return masks and density per round."""
    densities: list[float] = []
    indices: list[int] = []

    def on_round(index: int, density: float, masks: Mapping[str, Tensor]) -> None:
        indices.append(index)
        densities.append(density)

    masks = prune(
        copy.deepcopy(network),
        pruner or SynFlow(),
        rounds="auto",
        on_round=on_round,
        on_collapse="error",
        **options,
    )
    assert indices == list(range(1, len(indices) + 1))
    return masks, densities


def two_paths() -> nn.Module:
    """Return a chain whose two paths have the terms 1 * 2 and 4 * 8."""
    network = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0], [4.0]])
    network[1].weight.data = torch.tensor([[2.0, -8.0]])
    return network


def test_a_round_removes_what_fits_into_the_margin() -> None:
    # R is 34. The weights of the first path score 2 each, those of the second 32 each.
    masks, densities = automatic(two_paths(), num_kept=2, margin=0.12, input_shape=(1,))
    assert densities == [0.5]  # 2 + 2 <= 0.12 * 34
    assert masks["0.weight"].tolist() == [[False], [True]]
    assert masks["1.weight"].tolist() == [[False, True]]
    _, densities = automatic(two_paths(), num_kept=2, margin=0.11, input_shape=(1,))
    # 2 + 2 > 0.11 * 34. After the first of them, the other scores zero and costs nothing.
    assert densities == [0.75, 0.5]


def test_a_round_removes_at_least_one_weight() -> None:
    _, densities = automatic(two_paths(), num_kept=2, margin=1e-6, input_shape=(1,))
    assert densities == [0.75, 0.5]


def test_a_target_below_what_every_path_needs_is_an_error_that_names_the_number() -> None:
    network = two_paths()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(
        ValueError,
        match="num_kept 1 keeps 1 weight, but 2 weights are left there, each of which every path"
        " from input to output needs; choose a larger one",
    ):
        prune(network, SynFlow(), num_kept=1, rounds="auto", input_shape=(1,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match=r"density 0.1 keeps 1 weight, but 2 weights are left"):
        prune(network, SynFlow(), density=0.1, rounds="auto", input_shape=(1,))


def test_a_target_below_the_weights_that_every_path_needs_names_the_layers_of_a_local_scope() -> (
    None
):
    class Diagonal(nn.Module):
        """A chain of a layer and an elementwise skip that needs both weights of the layer."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)
            self.layer.weight.data = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
            self.layer.weight.data[0, 1] = 2.0

        def forward(self, x: Tensor) -> Tensor:
            first = self.layer(torch.cat([x, torch.zeros_like(x)], 1))
            return self.layer(torch.cat([torch.zeros_like(x), first[:, 1:]], 1))[:, :1]

    with pytest.raises(ValueError, match=r"keeps 1 weight of layer.weight, but 2 weights are left"):
        prune(Diagonal(), SynFlow(), density=0.25, rounds="auto", scope="local", input_shape=(1,))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pruner", [SynFlow, SynFlowL2])
@pytest.mark.parametrize("seed", range(3))
def test_a_path_remains_at_every_target_or_the_error_names_the_fewest_weights(
    name: str, pruner: type[Pruner], seed: int
) -> None:
    network, shape = draw(name, seed)
    total = sum(p.numel() for p in network.parameters() if p.dim() > 1)
    for num_kept in [total // 2, total // 10, *range(min(12, total // 10), 0, -1)]:
        margin = (0.99, 0.5, 0.999999)[seed]
        try:
            masks, _ = automatic(
                network, pruner(), num_kept=num_kept, margin=margin, input_shape=shape
            )
        except ValueError as error:
            if (found := NEEDED.search(str(error))) is None or int(found[1]) >= int(found[2]):
                raise
            continue
        assert masks.kept == num_kept
        assert diagnose(network, masks, input_shape=shape).alive


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("density", [0.5, 0.2])
def test_a_path_remains_with_a_local_scope_and_each_layer_has_its_density(
    name: str, density: float
) -> None:
    network, shape = draw(name, 2)
    masks, _ = automatic(network, density=density, scope="local", input_shape=shape)
    for mask in masks.values():
        assert int(mask.sum()) == kept_weights(mask.numel(), as_density(density))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "attention"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("margin", [0.99, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_masks_and_rounds_are_those_of_a_loop_of_full_sorts(
    name: str, scope: str, margin: float, seed: int
) -> None:
    network, shape = draw(name, seed)
    network.double()
    sizes = {name: p.numel() for name, p in network.named_parameters() if p.dim() > 1}
    density = Fraction(3, 10)
    keep: Mapping[str, int] | int = (
        kept_weights(sum(sizes.values()), density)
        if scope == "global"
        else {name: kept_weights(size, density) for name, size in sizes.items()}
    )
    expected, kept = brute_force(network, shape, keep, margin)
    masks, densities = automatic(
        network, density=density, scope=scope, margin=margin, input_shape=shape
    )
    assert densities == [count / sum(sizes.values()) for count in kept]
    for layer, mask in expected.items():
        assert torch.equal(masks[layer], mask), layer


def test_layers_with_more_weights_than_are_sorted_at_once_agree_with_full_sorts() -> None:
    network = nn.Sequential(
        nn.Linear(300, 400, bias=False), nn.ReLU(), nn.Linear(400, 10, bias=False)
    ).double()
    expected, kept = brute_force(network, (300,), 1000, 0.5)
    masks, densities = automatic(network, num_kept=1000, input_shape=(300,))
    assert len(densities) == len(kept)
    assert all(torch.equal(masks[layer], mask) for layer, mask in expected.items())


@pytest.mark.parametrize("name", ["shared", "attention"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_selection_without_synchronisation_gives_the_same_masks(
    name: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, shape = draw(name, 2)
    expected, before = automatic(network, density=0.3, scope=scope, input_shape=shape)
    monkeypatch.setattr("synflow_pl.selection._is_synchronous", lambda device: False)
    masks, densities = automatic(network, density=0.3, scope=scope, input_shape=shape)
    assert densities == before
    assert all(torch.equal(masks[layer], mask) for layer, mask in expected.items())


def test_weights_that_carry_no_flow_keep_step_with_the_density_of_the_others() -> None:
    network, shape = draw("attention", 2)
    seen: list[tuple[float, float]] = []

    def on_round(index: int, density: float, masks: Mapping[str, Tensor]) -> None:
        queries_and_keys = masks["attention.in_proj_weight"][:16]
        seen.append((density, float(queries_and_keys.double().mean())))

    masks = prune(
        network, SynFlow(), density=0.1, rounds="auto", input_shape=shape, on_round=on_round
    )
    assert masks.kept == kept_weights(masks.total, as_density(0.1))
    assert len(seen) > 3
    for density, separate in seen:
        assert separate == pytest.approx(density, abs=2 / 128)


def test_a_pruning_continues_from_earlier_masks() -> None:
    network, shape = draw("residual", 1)
    earlier, _ = automatic(network, density=0.5, input_shape=shape)
    masks, densities = automatic(network, density=0.1, masks=earlier, input_shape=shape)
    assert masks.kept == kept_weights(masks.total, as_density(0.1))
    assert densities[0] < 0.5
    assert not any(bool((masks[name] & ~earlier[name]).any()) for name in masks)


def test_an_effective_density_is_reached() -> None:
    network, shape = draw("branching", 2)
    masks, _ = automatic(network, effective_density=0.2, input_shape=shape)
    diagnosis = diagnose(network, masks, input_shape=shape)
    assert diagnosis.effective_density == pytest.approx(0.2, abs=0.03)


def test_parameters_that_are_zero_throughout_are_pruned_like_ones() -> None:
    network, shape = draw("chain", 1)
    nn.init.zeros_(network[4].weight)
    masks, _ = automatic(network, num_kept=3, input_shape=shape)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def test_layers_without_any_flow_through_them_stay_dense() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(4, 2, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0 * self.idle(x).sum()

    pruner = SynFlow()
    masks, _ = automatic(Idle(), pruner, num_kept=10, input_shape=(4,))
    assert masks.kept == 10
    for scope in ("global", "local"):
        masks, _ = automatic(Idle(), pruner, density=0.5, scope=scope, input_shape=(4,))
        assert masks.kept == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_margin_next_to_one_is_lowered_by_the_safety_against_rounding(
    dtype: torch.dtype,
) -> None:
    network = two_paths().to(dtype)
    # The second path carries 1e-5 of the flow, less than the safety in float32.
    network[1].weight.data[0, 0] = 32e-5
    masks, _ = automatic(network, num_kept=2, margin=1 - 1e-15, input_shape=(1,))
    assert masks["1.weight"].tolist() == [[False, True]]


def test_a_skip_connection_of_little_flow_is_used_for_the_fewest_weights() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.layer.weight, 1e9)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.layer(x))

    # Both weights score R in float32, but the path past the layer needs the head alone.
    masks, _ = automatic(Skip(), num_kept=1, input_shape=(1,))
    assert masks["head.weight"].item()
    assert not masks["layer.weight"].item()


@pytest.mark.parametrize(
    "pruner",
    [Magnitude(), SNIP(), SynFlowL2AsPublished(), Inverted(SynFlow()), Shuffled(Magnitude())],
    ids=lambda pruner: pruner.name,
)
def test_pruners_whose_scores_are_no_sums_over_paths_refuse_automatic_rounds(
    pruner: Pruner,
) -> None:
    with pytest.raises(ValueError, match=f"those of {pruner.name} are not; give a number of round"):
        prune(nn.Linear(4, 2), pruner, density=0.5, rounds="auto", input_shape=(4,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule: 'linear' sets the density after each .* leave one"),
        ({"margin": 1.0}, "margin: 1.0 must lie between 0 and 1"),
        ({"margin": 0}, "margin: 0 must lie between 0 and 1"),
        ({"margin": float("nan")}, "margin: nan must lie between 0 and 1"),
        ({"margin": True}, "margin: True must lie between 0 and 1"),
        ({"rounds": "all"}, "rounds: 'all' must be a whole number, at least 1, or 'auto'"),
    ],
)
def test_an_impossible_option_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruningOptions(**{"density": 0.1, "rounds": "auto", **options})


def test_wrappers_prune_with_automatic_rounds() -> None:
    network, shape = draw("chain", 2)
    expected, densities = automatic(network, num_kept=5, input_shape=shape)
    recorder = RecordingPruner(SynFlow(), "auto")
    masks, _ = automatic(network, recorder, num_kept=5, input_shape=shape)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    kept = [sum(counts) for counts in zip(*recorder.kept.values(), strict=True)]
    assert kept == [masks.total, *(round(density * masks.total) for density in densities)]
    # The scores are those of the last round, in which only weights kept so far are ranked.
    assert sum(int((score > 0).sum()) for score in recorder.scores.values()) <= kept[-2]


def test_scores_of_a_pruner_of_ones_own_can_have_automatic_rounds() -> None:
    class Doubled(SynFlow):
        """Scores and flow on another scale."""

        def score(self, state: PruningState) -> dict[str, Saliency | Tensor]:
            scores = {
                name: Saliency(score.weight, 2 * score.gradient)
                for name, score in super().score(state).items()
                if isinstance(score, Saliency)
            }
            assert state.total_flow is not None
            state.total_flow = 2 * state.total_flow
            return dict(scores)

    network, shape = draw("residual", 0)
    expected, _ = automatic(network, density=0.1, input_shape=shape)
    masks, _ = automatic(network, Doubled(), density=0.1, input_shape=shape)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


def test_a_note_says_if_a_fixed_number_of_rounds_removes_the_total_flow() -> None:
    pruner = SynFlow()
    with pytest.warns(UserWarning, match=r"another scope \(local\), rounds='auto', or on_collapse"):
        prune(two_paths(), pruner, num_kept=1, rounds=1, input_shape=(1,))
    # 2 + 2 + 32 of 34
    assert pruner.notes == (
        "round 1 of 1 removed 1.06 times the total flow: that a path from input to output remains"
        " is only guaranteed if each round removes less than the total flow, as with"
        " rounds='auto'",
    )
    prune(two_paths(), pruner, num_kept=2, rounds=1, input_shape=(1,))
    assert pruner.notes == ()


def test_only_pruners_with_automatic_rounds_recommend_them_for_a_disconnected_network() -> None:
    for pruner, advised in ((SynFlow(), True), (Magnitude(), False)):
        with pytest.warns(UserWarning, match="the network is dead") as caught:
            prune(two_paths(), pruner, num_kept=1, rounds=1, input_shape=(1,))
        assert ("rounds='auto'" in str(caught[0].message)) is advised


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_vgg11_is_connected_with_nine_weights(seed: int) -> None:
    torch.manual_seed(seed)
    masks, _ = automatic(VGG(11), num_kept=9, input_shape=(3, 32, 32))
    assert [int(mask.sum()) for name, mask in masks.items()] == [1] * 9
