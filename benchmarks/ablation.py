"""Measure what each part of the scorer's special machinery gains in time and memory.

    python -m benchmarks.ablation [--networks vgg16 resnet18 resnet20] [--runs 3]
        [--rounds auto 100] [--density 0.01] [--parts "blocks" "matrix products"]

Each contender runs SynFlow with one part replaced by the plain operation of PyTorch, at the default
number of threads. The ratio to the unchanged code is the factor that the part gains. The masks of
all contenders are compared with those of the unchanged code: they are equal where the part does not
change the order of summation. Memory is measured in one process per contender.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.pruning import argument_parser, network_of, peak_memory
from benchmarks.timing import environment, give_back_at_once, in_turn, table
from synflow_pl import Masks, prune
from synflow_pl.budget_selection import WithinBudget
from synflow_pl.pruners import SynFlow


def sorted_smallest(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], num_candidates: int, count: int
) -> Iterator[Tensor]:
    """Select the ``count`` smallest scores as :func:`smallest_of_many` does, with ``kthvalue``."""
    if not count:
        yield from (torch.empty(0, dtype=torch.int64) for _ in parts)
        return
    scores = torch.cat(list(parts)).masked_fill(~torch.cat(list(candidates)), torch.inf)
    threshold = scores.kthvalue(count).values
    selected = scores <= threshold
    excess = int(selected.sum()) - count
    if excess:
        selected[(scores == threshold).nonzero().flatten()[:excess]] = False
    for part in selected.split([part.numel() for part in parts]):
        yield part.nonzero().flatten()


def sorted_within_budget(
    parts: Sequence[Tensor],
    candidates: Sequence[Tensor],
    num_candidates: int,
    budget: float,
    most: int,
) -> WithinBudget:
    """Select as :func:`smallest_within_budget` does, with a sort of all scores."""
    scores = torch.cat([part[mask] for part, mask in zip(parts, candidates, strict=True)])
    sums = scores.sort().values.cumsum(0, dtype=torch.float64)
    count = min(int(torch.searchsorted(sums, budget, right=True)), most)
    return WithinBudget(count, float(sums[count - 1]) if count else 0.0)


def _every_position(
    nodes: Sequence[Any], sources: Mapping[int, Tensor], outputs: Sequence[int], *_: Any
) -> tuple[list[Any], dict[int, Tensor], tuple[int, ...]]:
    return list(nodes), dict(sources), tuple(outputs)


PARTS: dict[str, dict[str, Any]] = {
    "deduplicated positions": {"synflow_pl.flow.builder.deduplicate_positions": _every_position},
    "blocks": {"synflow_pl.selection.PruningGroup._is_sparse": lambda *_: False},
    "matrix products": {"synflow_pl.flow.convolution._FEW": 0},
    "selection by sampling": {
        "synflow_pl.selection.smallest_of_many": sorted_smallest,
        "synflow_pl.selection.smallest_within_budget": sorted_within_budget,
    },
}
CONTENDERS: dict[str, list[str]] = {
    "as it is": [],
    **{f"without {part}": [part] for part in PARTS},
    "without any of them": list(PARTS),
}


@contextmanager
def without(parts: Sequence[str]) -> Iterator[None]:
    """Replace some parts of the machinery by plain operations."""
    with ExitStack() as stack:
        for part in parts:
            for name, replacement in PARTS[part].items():
                stack.enter_context(patch(name, replacement))
        yield


def _pruned(name: str, rounds: int | str, density: float, contender: str) -> Masks:
    network, shape = network_of(name)
    with without(CONTENDERS[contender]):
        return prune(network, SynFlow(), density=density, rounds=rounds, input_shape=shape)


def _memory(name: str, rounds: int | str, density: float, contender: str) -> float:
    """Return the peak memory of a contender. It is called in a process of its own."""
    give_back_at_once()
    network, shape = network_of(name)

    def work(network: nn.Module, rounds: int | str) -> Masks:
        return prune(network, SynFlow(), density=density, rounds=rounds, input_shape=shape)

    with without(CONTENDERS[contender]):
        return peak_memory(network, work, rounds)


def measure(name: str, rounds: int | str, options: argparse.Namespace) -> None:
    """Print time, memory and agreement of the masks of every contender."""
    masks: dict[str, Masks] = {}

    def contender(key: str) -> Callable[[], None]:
        def run() -> None:
            masks[key] = _pruned(name, rounds, options.density, key)

        return run

    keys = [key for key, parts in CONTENDERS.items() if set(parts) <= set(options.parts)]
    taken = in_turn({key: contender(key) for key in keys}, options.runs)
    table(taken, "as it is", f"{name}, {rounds} rounds")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as alone:
        for key, found in masks.items():
            different = sum(
                int((found[layer] != mask).sum()) for layer, mask in masks["as it is"].items()
            )
            peak = alone.apply(_memory, (name, rounds, options.density, key))
            print(
                f"  {key:<32} {different:>8} masks differ; peak {peak:.2f} x parameters", flush=True
            )


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--rounds", nargs="+", default=["auto", 100], type=lambda x: x if x == "auto" else int(x)
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    print(environment())
    for name in options.networks:
        for rounds in options.rounds:
            measure(name, rounds, options)


if __name__ == "__main__":
    main()
