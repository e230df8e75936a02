"""Groups of weights are removed together: exact patterns and budgets, in order of their scores."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import Masks, compact, diagnose, prune
from synflow_pl.flow import number_units, trace
from synflow_pl.granularity import Granularity
from synflow_pl.networks import Conv, ResNet
from synflow_pl.pruners import (
    FORCE,
    LAMP,
    SNIP,
    GraSP,
    Magnitude,
    Pruner,
    Random,
    Shuffled,
    SynFlow,
)
from synflow_pl.structure import compare_latency
from tests import acting_networks


class Residual(nn.Module):
    """Residual blocks with BatchNorm, one of which changes the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.wide, self.skip = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.two(self.one(x).relu())).relu()
        x = (self.wide(x) + self.skip(x)).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Depthwise(nn.Module):
    """Inverted bottleneck, a grouped convolution and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(4, 12, 1), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down = nn.Conv2d(12, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose2d(8, 8, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.depthwise(self.norm(self.up(x)).relu()).relu())
        y = self.back(self.grouped(x).relu()).relu()
        logits: Tensor = self.head(torch.cat([x.mean((2, 3)), y.mean((2, 3))], 1))
        return logits


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(self.up(x).relu())
        logits: Tensor = self.head(x.mean(1))
        return logits


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "chain": (chain, (8,)),
    "residual": (Residual, (3, 6, 6)),
    "depthwise": (Depthwise, (4, 6, 6)),
    "attention": (Attention, (5, 6)),
    "inputs first": acting_networks.NETWORKS["inputs first"][:2],
    "einsum": acting_networks.NETWORKS["einsum"][:2],
    "experts": acting_networks.NETWORKS["experts"][:2],
    "GRU": acting_networks.NETWORKS["GRU 1"][:2],
}
GRANULARITIES = ["kernel", "block:2x2", "block:3x4", "unit", "2:4-padded", "1:2-padded", "2:3"]
PRUNERS: list[Callable[[], Pruner]] = [SynFlow, Magnitude, Random, LAMP, SNIP, GraSP, FORCE]


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make().eval(), torch.randn(1, *shape)


def with_units(name: str) -> bool:
    """Return whether a network has units that can be removed."""
    return name in ("chain", "residual", "depthwise", "attention")


def options(granularity: str, density: float = 0.4) -> dict[str, Any]:
    kind = Granularity.parse(granularity).kind
    return {"granularity": granularity, **({} if kind == "n:m" else {"density": density})}


def batches(network: nn.Module, example: Tensor) -> Any:
    outputs = network(example).shape[-1]
    return [(torch.randn(8, *example.shape[1:]), torch.randint(outputs, (8,)))]


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    copies = logits[0].numel() // logits.shape[-1]
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.repeat_interleave(copies))


def as_matrix(network: nn.Module, name: str, example: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor of a weight's shape as (stack, outputs, inputs, positions), by its class."""
    module = network.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.ConvTranspose2d):
        return tensor.transpose(0, 1).flatten(2)[None]
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention, nn.RNNBase)):
        return tensor.flatten(2)[None] if tensor.dim() > 2 else tensor[None, :, :, None]
    by_shape = {
        (6, 9): lambda x: x.T[None],  # inputs first
        (9, 4): lambda x: x.T[None],
        (6, 3, 4): lambda x: x.flatten(1).T[None],  # heads of einsum
        (3, 4, 5): lambda x: x.flatten(0, 1).T[None],
        (3, 6, 8): lambda x: x.mT,  # experts
        (3, 8, 4): lambda x: x.mT,
    }
    return by_shape[tuple(tensor.shape)](tensor)[..., None]


def assert_pattern(granularity: str, network: nn.Module, masks: Masks, example: Tensor) -> None:
    """Check that each group is kept or removed as a whole, or that N of M are kept."""
    parsed = Granularity.parse(granularity)
    for name in masks.weights:
        matrix = as_matrix(network, name, example, masks[name])
        _, outputs, inputs, positions = matrix.shape
        if parsed.kind == "kernel":
            assert bool(((matrix.sum(3) == 0) | (matrix.sum(3) == positions)).all())
        elif parsed.kind == "block":
            high, wide = parsed.sizes
            for row in range(0, outputs, high):
                for column in range(0, inputs, wide):
                    block = matrix[:, row : row + high, column : column + wide].flatten(1)
                    assert bool((block.all(1) | ~block.any(1)).all())
        elif parsed.kind == "n:m":
            keep, size = parsed.sizes
            if inputs % size and not parsed.padded:
                assert bool(matrix.all())
                continue
            for column in range(0, inputs, size):
                group = matrix[:, :, column : column + size]
                expected = torch.full_like(group.sum(2), min(keep, group.shape[2]))
                assert torch.equal(group.sum(2), expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_pruner_keeps_or_removes_whole_groups_within_the_budget(
    name: str, granularity: str
) -> None:
    if granularity == "unit" and not with_units(name):
        pytest.skip("its shapes are fixed")
    density = 0.6 if name == "attention" else 0.4
    for pruner in PRUNERS:
        network, example = build(name)
        rounds = 3 if pruner in (SynFlow, FORCE, Magnitude) else 1
        steps: list[dict[str, Tensor]] = []

        def record(
            index: int, density: float, masks: Any, steps: list[dict[str, Tensor]] = steps
        ) -> None:
            steps.append({key: mask.clone() for key, mask in masks.items()})

        masks = prune(
            network,
            pruner(),
            rounds=rounds,
            example_input=example,
            batches=batches(network, example),
            loss=loss,
            on_collapse="ignore",
            on_round=record,
            **options(granularity, density),
        )
        assert_pattern(granularity, network, masks, example)
        assert len(steps) == rounds
        if pruner is not FORCE:  # FORCE brings weights back
            for earlier, later in itertools.pairwise(steps):
                assert all(bool((earlier[key] >= later[key]).all()) for key in later)
        for weight, mask in masks.parameters(network):
            assert not bool(weight[~mask].any())
        if Granularity.parse(granularity).kind != "n:m":
            assert masks.kept <= masks.total - math.floor((1 - density) * masks.total)


@pytest.mark.parametrize("granularity", ["kernel", "block:2x2", "1:2-padded"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_the_groups_with_the_lowest_sums_of_scores_are_removed(
    granularity: str, scope: str
) -> None:
    """Compared with a sort of sums in plain Python."""
    network, example = build("depthwise")
    dense = copy.deepcopy(network)
    masks = prune(
        network,
        Magnitude(),
        example_input=example,
        scope=scope,
        on_collapse="ignore",
        **options(granularity, 0.37),
    )
    parsed = Granularity.parse(granularity)
    groups: list[tuple[float, str, list[tuple[int, ...]]]] = []
    for name in masks.weights:
        weight = dense.get_parameter(name)
        numbers = torch.arange(weight.numel()).view(weight.shape)
        view = as_matrix(dense, name, example, numbers)[0]
        outputs, inputs, positions = view.shape
        high, wide = parsed.sizes if parsed.kind == "block" else (1, 1)
        for row in range(0, outputs, high):
            for column in range(0, inputs, wide):
                for place in [slice(None)] if parsed.kind != "n:m" else range(positions):
                    entries = view[row : row + high, column : column + wide, place].flatten()
                    score = weight.detach().flatten()[entries].abs().double().sum()
                    groups.append((float(score), name, entries.tolist()))
    kept = {name: torch.ones(mask.numel(), dtype=torch.bool) for name, mask in masks.items()}
    if parsed.kind == "n:m":
        for name in masks.weights:
            weight = dense.get_parameter(name).detach().abs()
            view = as_matrix(dense, name, example, weight)[0]
            numbers = as_matrix(
                dense, name, example, torch.arange(weight.numel()).view(weight.shape)
            )[0]
            for row, row_numbers in zip(view, numbers, strict=True):
                for place in range(row.shape[1]):
                    for column in range(0, row.shape[0] - 1, 2):
                        pair = row[column : column + 2, place]
                        loser = column + int(pair.argmin())
                        kept[name][row_numbers[loser, place]] = False
    else:
        layers = [masks.weights] if scope == "global" else [[name] for name in masks.weights]
        if scope == "global":
            budget = masks.total - math.floor(0.63 * masks.total)
            left = masks.total
            for _, name, entries in sorted(groups, key=lambda group: group[0]):
                if left <= budget:
                    break
                kept[name][entries] = False
                left -= len(entries)
        else:
            for (name,) in layers:
                of_layer = sorted(group for group in groups if group[1] == name)
                share = masks[name].float().mean()
                assert abs(float(share) - 0.37) < 0.37  # to one group
                removed = sum(not bool(masks[name].flatten()[g[2][0]]) for g in of_layer)
                for _, _, entries in of_layer[:removed]:
                    kept[name][entries] = False
    for name in masks.weights:
        assert torch.equal(masks[name].flatten(), kept[name]), name


@pytest.mark.parametrize("rounds", [3, "auto"])
@pytest.mark.parametrize(
    ("name", "density"),
    [
        *itertools.product(("chain", "residual"), (0.6, 0.3, 0.15)),
        *itertools.product(("depthwise",), (0.6, 0.3)),
        *itertools.product(("attention",), (0.7, 0.55)),
    ],
)
def test_the_compacted_network_is_the_network_pruned_by_units(
    name: str, density: float, rounds: Any
) -> None:
    """It has the kept weights, and one unit of a layer of which none is kept."""
    network, example = build(name)
    masks = prune(
        network,
        SynFlow(),
        granularity="unit",
        density=density,
        rounds=rounds,
        example_input=example,
        on_collapse="error",
    )
    small = compact(network, masks, example_input=example).eval()
    left = {key: value for key, value in small.named_parameters() if key in masks}
    if all(bool(mask.any()) for mask in masks.values()):
        assert sum(value.numel() for value in left.values()) == masks.kept
    data = torch.randn(4, *example.shape[1:])
    torch.testing.assert_close(small(data), network(data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", ["weight", "unit", "kernel", "block:2x2"])
@pytest.mark.parametrize("budget", ["flops", "parameters"])
@pytest.mark.parametrize("pruner", [SynFlow, Magnitude])
def test_a_budget_of_flops_or_parameters_is_the_nearest_from_below(
    pruner: Callable[[], Pruner], budget: str, granularity: str
) -> None:
    network, example = build("residual")
    sizes: list[float] = []
    for share in (0.5, 0.3):
        pruned = copy.deepcopy(network)
        masks = prune(
            pruned,
            pruner(),
            rounds=20 if pruner is SynFlow else 1,
            granularity=granularity,
            example_input=example,
            on_collapse="ignore",
            **{budget: share},
        )
        diagnosis = diagnose(pruned, masks, example_input=example)
        if not diagnosis.alive:  # compaction keeps less of it
            continue
        if budget == "flops":
            found = diagnosis.sparse_flops / diagnosis.flops
        elif granularity == "unit":
            small = compact(pruned, masks, example_input=example)
            found = count(small) / count(network)
        else:
            found = (masks.kept + count(network) - masks.total) / count(network)
        assert found <= share
        assert found > share - (0.15 if granularity == "unit" else 0.02)
        sizes.append(found)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes or pruner is Magnitude


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("granularity", ["unit", "kernel", "block:2x2", "block:1x8"])
@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "attention"])
def test_automatic_rounds_by_groups_never_disconnect_the_network(
    name: str, granularity: str
) -> None:
    for num_kept in (400, 200, 100, 60, 40, 30, 20, 10, 3):
        network, example = build(name)
        reachable = True
        try:
            masks = prune(
                network,
                SynFlow(),
                granularity=granularity,
                num_kept=num_kept,
                rounds="auto",
                example_input=example,
                on_collapse="error",
            )
        except ValueError as error:
            message, reachable = str(error), False
        if reachable:
            assert masks.kept <= num_kept
            assert diagnose(network, masks, example_input=example).alive
        else:
            found = re.match(rf"num_kept {num_kept}: ([\d,]+) (of [\d,]+ )?is left", message)
            assert found is not None, message
            assert int(found[1].replace(",", "")) > num_kept


def test_one_round_of_automatic_rounds_removes_less_than_the_total_flow() -> None:
    network, example = build("residual")
    removed: list[float] = []

    class Watching(SynFlow):
        def score(self, state: Any) -> Any:
            found = super().score(state)
            self.scores = {
                key: (value.weight * value.gradient).double()
                if isinstance(value, tuple)
                else value.double()
                for key, value in found.items()
            }
            self.flow = float(state.total_flow)
            self.before = {key: mask.clone() for key, mask in state.masks.items()}
            return found

    pruner = Watching()

    def record(index: int, density: float, masks: Any) -> None:
        total = sum(
            float(pruner.scores[key][pruner.before[key] & ~masks[key]].sum()) for key in masks
        )
        removed.append(total / pruner.flow)

    prune(
        network,
        pruner,
        granularity="unit",
        density=0.1,
        rounds="auto",
        margin=0.5,
        example_input=example,
        on_round=record,
    )
    assert len(removed) > 3
    # A last unit whose score is larger than the budget is removed alone.
    assert all(share < 1 for share in removed)


def test_weights_of_a_unit_are_those_into_it_and_out_of_it() -> None:
    """Hand-computed: the middle unit has the lowest sum of rows and columns."""
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 0.5], [1.0, 1.0]]))
        network[2].weight.copy_(torch.tensor([[1.0, 0.1, 3.0]]))
    masks = prune(
        network,
        Magnitude(),
        granularity="unit",
        num_kept=6,
        example_input=torch.ones(1, 2),
    )
    assert masks["0.weight"].tolist() == [[True, True], [False, False], [True, True]]
    assert masks["2.weight"].tolist() == [[True, False, True]]


def test_a_mean_score_compares_groups_of_different_sizes() -> None:
    """The 3 x 3 kernels have larger sums than the 1 x 1 kernels, and smaller means."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(0.5)
        network[1].weight.fill_(1.0)
    example = torch.ones(1, 1, 5, 5)
    removed = []
    for group_score in ("sum", "mean", "per_cost"):
        masks = prune(
            copy.deepcopy(network),
            Magnitude(),
            granularity="kernel",
            num_kept=43,
            group_score=group_score,
            example_input=example,
            on_collapse="ignore",
        )
        removed.append([int((~masks[name]).sum()) for name in masks.weights])
    assert removed == [[0, 9], [9, 0], [9, 0]]


def test_pairs_of_two_in_four_lie_as_semi_structured_matrices_need_them() -> None:
    """Two of any four consecutive entries of the rows of an (out, in) matrix are kept."""
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))
    masks = prune(network, SynFlow(), granularity="2:4", rounds=5, input_shape=(64,))
    for name in masks.weights:
        in_fours = masks[name].unflatten(1, (-1, 4)).sum(2)
        assert torch.equal(in_fours, torch.full_like(in_fours, 2))


def test_layers_that_do_not_divide_are_named_and_stay_dense() -> None:
    network, pruner = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), Magnitude()
    masks = prune(network, pruner, granularity="2:4", input_shape=(6,))
    assert masks["0.weight"].all()
    assert int(masks["2.weight"].sum()) == 12
    assert pruner.notes[0] == "stay dense, since their inputs do not divide by 4: 0.weight (6)"
    with pytest.raises(ValueError, match="no layer can be pruned to N:M"):
        prune(network, Magnitude(), granularity="2:5", input_shape=(6,))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.05),
        lambda p: torch.optim.NAdam(p, lr=0.01),
    ],
    ids=["SGD", "AdamW", "RMSprop", "Adagrad", "NAdam"],
)
@pytest.mark.parametrize("granularity", ["kernel", "block:2x2", "unit", "2:4-padded"])
def test_groups_stay_zero_in_training(granularity: str, optimizer: Any) -> None:
    network, example = build("residual")
    masks = prune(network, SynFlow(), rounds=3, example_input=example, **options(granularity, 0.5))
    steps = optimizer(network.parameters())
    hold = masks.hold(network, steps)
    network.train()
    for _ in range(50):
        steps.zero_grad()
        network(torch.randn(8, 3, 6, 6)).square().mean().backward()
        steps.step()
    hold.remove()
    assert_pattern(granularity, network, masks, example)
    for weight, mask in masks.parameters(network):
        assert not bool(weight[~mask].any())


def test_a_pruning_by_units_continues_from_earlier_masks() -> None:
    network, example = build("residual")
    first = prune(network, SynFlow(), granularity="unit", density=0.5, example_input=example)
    second = prune(
        network, SynFlow(), granularity="unit", density=0.2, masks=first, example_input=example
    )
    assert second.kept <= 0.2 * second.total + 1
    assert all(bool((first[name] >= second[name]).all()) for name in second)
    small = compact(network, second, example_input=example)
    left = {key: value for key, value in small.named_parameters() if key in second}
    assert sum(value.numel() for value in left.values()) == second.kept


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"granularity": "rows", "density": 0.1}, "granularity: 'rows' is not one of weight, unit"),
        ({"granularity": "4:2"}, "granularity: '4:2' is not one of"),
        ({"granularity": "block:0x4", "density": 0.1}, "granularity: 'block:0x4' is not one of"),
        ({"granularity": "2:4", "density": 0.1}, "density: 0.1, but granularity '2:4' itself sets"),
        ({"granularity": "unit"}, "give either density, in .* got none"),
        ({"flops": 0.5, "density": 0.1}, "got density=0.1, flops=0.5"),
        ({"flops": 1.5}, r"flops: 1.5 is not in \(0, 1\]; it is the fraction of FLOPs kept"),
        ({"parameters": 0}, r"parameters: 0 is not in \(0, 1\]; it is the fraction of parameters"),
        ({"latency": 0.5}, "latency: 0.5, but zeros within units take as long"),
        ({"density": 0.1, "group_score": "mean"}, "group_score: 'mean' ranks groups of weights"),
        ({"density": 0.1, "group_score": "max"}, "group_score: 'max' is not one of sum, mean, per"),
        (
            {"granularity": "2:5", "example_input": torch.ones(1, 8)},
            "no layer can be pruned to N:M",
        ),
        ({"granularity": "unit", "density": 0.5}, "granularity: 'unit' needs the graph"),
        ({"flops": 0.5}, "flops: 0.5 needs the graph of the network; give input_shape="),
    ],
    ids=range(14),
)
def test_impossible_options_are_an_error_before_anything_is_pruned(
    given: dict[str, Any], message: str
) -> None:
    network = chain()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        prune(network, Magnitude(), on_collapse="ignore", **given)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 16)
    )


def test_a_latency_is_met_by_the_compacted_network_and_stated() -> None:
    torch.manual_seed(0)
    network, pruner, example = wide().eval(), Magnitude(), torch.randn(64, 256)
    masks = prune(
        network,
        pruner,
        granularity="unit",
        latency=0.5,
        example_input=example,
        on_collapse="ignore",
    )
    assert 0.05 < masks.density < 0.95
    assert re.search(
        r"the latency is 0\.\d+ \(quartiles [\d.]+ to [\d.]+\) of the dense network's, measured"
        r" 25 times at batch 64 on \d+ threads, with [\d.]+ of the FLOPs",
        pruner.notes[-1],
    )
    small = compact(network, masks, example_input=example)
    assert compare_latency(small, network, (example,)).median < 0.8
    with pytest.raises(ValueError, match=r"latency: 1e-06 of the dense network's was not reached"):
        prune(
            wide(),
            Magnitude(),
            granularity="unit",
            latency=1e-6,
            example_input=example,
            on_collapse="ignore",
        )


def test_a_layer_without_scores_stays_dense_or_is_refused() -> None:
    """Units of layers with scores are ranked by these alone."""

    class OfFirstLayer(Magnitude):
        def score(self, state: Any) -> Any:
            return {
                name: score * (name != "4.weight") for name, score in super().score(state).items()
            }

    options: dict[str, Any] = {"on_collapse": "ignore", "example_input": torch.ones(1, 8)}
    pruner = OfFirstLayer()
    masks = prune(chain(), pruner, granularity="block:2x2", density=0.3, **options)
    assert bool(masks["4.weight"].all())
    assert "kept dense, since their scores are zero throughout: 4.weight" in pruner.notes
    pruner = OfFirstLayer()
    masks = prune(chain(), pruner, granularity="unit", density=0.3, **options)
    assert not bool(masks["4.weight"].all())
    assert pruner.notes[0].startswith("ranked by the other weights of their units, since their")
    with pytest.raises(ValueError, match=r"every score of 4.weight is zero, so which of its"):
        prune(chain(), OfFirstLayer(), granularity="2:4", **options)


def test_a_round_of_groups_that_removes_more_than_the_flow_is_named() -> None:
    network, example = build("residual")
    pruner = SynFlow()
    prune(
        network,
        pruner,
        granularity="block:2x2",
        density=0.1,
        rounds=2,
        example_input=example,
        on_collapse="ignore",
    )
    assert any("times the total flow" in note for note in pruner.notes)


def test_a_pruner_that_moves_weights_is_refused_for_groups() -> None:
    with pytest.raises(ValueError, match="Shuffled moves single weights, which breaks up groups"):
        prune(chain(), Shuffled(Magnitude()), granularity="unit", density=0.5, input_shape=(8,))


def test_a_network_without_removable_units_is_an_error() -> None:
    with pytest.raises(ValueError, match="no unit of the network can be removed"):
        prune(nn.Linear(4, 3), Magnitude(), granularity="unit", density=0.5, input_shape=(4,))


@pytest.mark.parametrize(("make", "shape"), [(Conv, (1, 28, 28)), (lambda: ResNet(8), (3, 32, 32))])
def test_networks_of_the_zoo_are_pruned_by_units_to_a_tenth_of_the_flops(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    masks = prune(
        network, SynFlow(), granularity="unit", flops=0.1, rounds="auto", input_shape=shape
    )
    diagnosis = diagnose(network, masks, input_shape=shape)
    assert diagnosis.alive
    assert 0.07 < diagnosis.sparse_flops / diagnosis.flops <= 0.1
    small = compact(network, masks, input_shape=shape)
    dense = Masks({name: torch.ones_like(small.get_parameter(name)).bool() for name in masks})
    again = diagnose(small, dense, input_shape=shape)
    assert again.flops == diagnosis.sparse_flops


def test_views_agree_with_the_products_in_which_weights_act() -> None:
    for name in ("inputs first", "einsum", "experts"):
        network, example = build(name)
        for key, (units, inputs) in number_units(
            trace(network, (example,)), acting_networks.NETWORKS[name][2]
        ).items():
            of_unit = as_matrix(network, key, example, units)
            of_input = as_matrix(network, key, example, inputs)
            assert bool((of_unit == of_unit[:, :, :1]).all())
            assert bool((of_input == of_input[:, :1]).all())
