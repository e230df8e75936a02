"""Find the highest compression at which each pruner leaves a path from input to output.

    python benchmarks/critical_compression.py [--networks VGG-16 ResNet-20]
        [--pruners synflow snip ...] [--rounds 100] [--images 20]

The maximal compression of a network (Tanaka et al. 2020, Section 3) keeps one path and nothing
else: in a chain one weight per layer, with identity shortcuts the weights on a shortest path.
According to its axiom, SynFlow reaches it with enough rounds.

For each pruner the number of weights kept is doubled, from that least number on, until the network
is connected, and then bisected between the last number that left no path and the first that did.
(The result need not be the smallest such number: under iterative pruners connectivity is not
monotonic.) ``--rounds`` limits the rounds of pruners that need many passes over data; ``--steps``
is the number of bisections.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.flow import example_of, is_connected, linearise
from synflow_pl.networks import VGG, ResNet
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import (
    FORCE,
    LAMP,
    NTKSAP,
    PHEW,
    SNIP,
    GraSP,
    InvertedGraSP,
    Magnitude,
    Pruner,
    Random,
    SynFlow,
    SynFlowL2,
)
from synflow_pl.pruners.layer_graph import layer_graph

SHAPE = (3, 32, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-11": lambda: VGG(11),
    "VGG-16": lambda: VGG(16),
    "ResNet-20": lambda: ResNet(20),
}
PRUNERS: dict[str, tuple[Callable[[], Pruner], int]] = {
    "random": (lambda: Random(), 1),
    "random_erk": (lambda: Random(quota="erk"), 1),
    "random_igq": (lambda: Random(quota="igq"), 1),
    "magnitude": (Magnitude, 1),
    "lamp": (LAMP, 1),
    "snip": (SNIP, 1),
    "grasp": (GraSP, 1),
    "grasp_inverted": (InvertedGraSP, 1),
    "snip_iterative": (SNIP, 60),
    "force": (FORCE, 60),
    "ntk_sap": (lambda: NTKSAP(images=20), 100),
    "phew": (PHEW, 1),
    "synflow_l2": (SynFlowL2, 100),
    "synflow": (SynFlow, 100),
}
LADDER = (10, 30, 50, 100, 200, 300)
COSTLY = ("snip_iterative", "force", "ntk_sap")


def fewest_weights(network: nn.Module) -> int:
    """Return the smallest number of weights on a path from input to output.

    A path has one weight of each layer that it passes through.
    """
    layers = {name: parameter.detach() for name, parameter in prunable(network).items()}
    graph = layer_graph(linearise(network, example_of(network, SHAPE, None)), layers)
    fewest = {name: 1 for name, entry in graph.entries.items() if entry.any()}
    for _ in layers:
        for reader, source in graph.feeds:
            if source in fewest:
                fewest[reader] = min(fewest.get(reader, len(layers)), fewest[source] + 1)
    return min(count for name, count in fewest.items() if graph.exits[name].any())


def smallest_connected(connected: Callable[[int], bool], total: int, least: int, steps: int) -> int:
    """Return a number of weights at which a pruned network is connected, by doubling and bisection.

    Args:
        connected: Function that returns whether the network with that many weights is connected.
        total: Number of weights of the dense network.
        least: Smallest number of weights to try.
        steps: Number of bisections.
    """
    low, high = least - 1, least
    while high < total and not connected(high):
        low, high = high, min(2 * high, total)
    for _ in range(steps):
        if (middle := (low + high) // 2) == low:
            break
        low, high = (low, middle) if connected(middle) else (middle, high)
    return high


def leaves_a_path(
    dense: nn.Module,
    make: Callable[[], Pruner],
    rounds: int,
    batches: list[tuple[Tensor, Tensor]],
    kept: int,
) -> bool:
    """Return whether a pruned copy of a network is connected.

    Args:
        dense: Network, which is left unchanged.
        make: Function that returns the pruner.
        rounds: Number of rounds.
        batches: Batches for data-driven pruners.
        kept: Number of weights kept.
    """
    network = copy.deepcopy(dense)
    inputs = example_of(network, SHAPE, None)
    return is_connected(
        network,
        prune(network, make(), num_kept=kept, rounds=rounds, example_input=inputs, batches=batches),
        inputs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["VGG-16", "ResNet-20"], choices=NETWORKS)
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS), choices=PRUNERS)
    parser.add_argument(
        "--rounds",
        type=int,
        default=100,
        help="limit for iterative pruners that need many passes over data",
    )
    parser.add_argument(
        "--images", type=int, default=20, help="images of noise for data-driven pruners"
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in options.networks:
        torch.manual_seed(options.seed)
        dense = NETWORKS[name]().to(device)
        batches = [(torch.randn(options.images, *SHAPE), torch.randint(0, 10, (options.images,)))]
        total = sum(parameter.numel() for parameter in prunable(dense).values())
        least = fewest_weights(dense)
        print(
            f"\n{name}: {total:,} weights; no path has fewer than {least}: compression at most"
            f" {total / least:,.0f}"
        )
        print(
            f"{'pruner':22} {'rounds':>6} {'kept':>9} {'compression':>12} {'of the maximum':>15}"
            f" {'seconds':>8}",
            flush=True,
        )
        for label in options.pruners:
            make, rounds = PRUNERS[label]
            if label in COSTLY:
                rounds = min(rounds, options.rounds)
            connected = partial(leaves_a_path, dense, make, rounds, batches)
            started = time.perf_counter()
            kept = smallest_connected(connected, total, least, options.steps)
            seconds = time.perf_counter() - started
            print(
                f"{label:22} {rounds:6} {kept:9,} {total / kept:12,.0f} {least / kept:15.2%}"
                f" {seconds:8.1f}",
                flush=True,
            )
        if "synflow" in options.pruners:
            enough = next(
                (
                    rounds
                    for rounds in LADDER
                    if leaves_a_path(dense, SynFlow, rounds, batches, least)
                ),
                None,
            )
            reached = f"after {enough} rounds" if enough else f"not within {LADDER[-1]} rounds"
            print(
                f"synflow leaves a path of {least} weights and nothing else {reached} (tried"
                f" {', '.join(map(str, LADDER))})",
                flush=True,
            )


if __name__ == "__main__":
    main()
