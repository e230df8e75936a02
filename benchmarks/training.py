"""Compare sparse with dense training steps, and scoring with the passes that it consists of.

    python -m benchmarks.training [--what steps scores] [--threads N] [--runs 7] [--device cpu]

A step is forward, backward and SGD with Nesterov momentum, for ResNet-20 at batch size 128 and
VGG-16 at batch size 32. Density 0.1 is held in three ways: by masks as the callback holds them; by
`torch.nn.utils.prune`; and by layers that multiply a mask into their weight. One round of SNIP and
of GraSP, on two batches of 64, is compared with one and two backward passes over these batches.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.prune import custom_from_mask

from benchmarks.pruning import masked
from benchmarks.timing import environment, in_turn, table
from synflow_pl import prune
from synflow_pl.networks import VGG, ResNet
from synflow_pl.pruners import SNIP, GraSP, Random

NETWORKS = {"ResNet-20": (lambda: ResNet(20), 128), "VGG-16": (lambda: VGG(16), 32)}


def steps(name: str, options: argparse.Namespace) -> None:
    """Time the training steps of one network, dense and sparse in three ways."""
    torch.manual_seed(0)
    build, batch = NETWORKS[name]
    images = torch.randn(batch, 3, 32, 32, device=options.device)
    labels = torch.randint(0, 10, (batch,), device=options.device)

    def training(kind: str) -> Callable[[], None]:
        network = build().to(options.device)
        masks = prune(copy.deepcopy(network), Random(), density=0.1) if kind != "dense" else {}
        if kind == "masked layers":
            network, layers = masked(network)
            for key, layer in layers.items():
                layer.mask.copy_(masks[key])
        elif kind == "torch.nn.utils.prune":
            for key, mask in masks.items():
                owner, _, own = key.rpartition(".")
                custom_from_mask(network.get_submodule(owner), own, mask)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        if kind == "ours":
            masks.apply(network)
            masks.hold(network, optimizer)

        def step() -> None:
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()

        return step

    kinds = ("dense", "ours", "torch.nn.utils.prune", "masked layers")
    table(
        in_turn({kind: training(kind) for kind in kinds}, options.runs),
        "dense",
        f"{name}, batch {batch}, a step",
    )


def scores(name: str, options: argparse.Namespace) -> None:
    """Time SNIP and GraSP and plain passes over the same batches."""
    torch.manual_seed(0)
    network: nn.Module = NETWORKS[name][0]().eval().to(options.device)
    batches = [
        (
            torch.randn(64, 3, 32, 32, device=options.device),
            torch.randint(0, 10, (64,), device=options.device),
        )
        for _ in range(2)
    ]

    def once() -> None:
        for images, labels in batches:
            cross_entropy(network(images), labels).backward()
        network.zero_grad(set_to_none=True)

    def twice() -> None:
        once()
        once()

    def ours(pruner: SNIP | GraSP) -> Callable[[], None]:
        return lambda: prune(copy.deepcopy(network), pruner, density=0.1, batches=batches) and None

    title = f"{name}, two batches of 64"
    table(
        in_turn({"one backward pass": once, "SNIP": ours(SNIP())}, options.runs),
        "one backward pass",
        title,
    )
    table(
        in_turn({"two backward passes": twice, "GraSP": ours(GraSP())}, options.runs),
        "two backward passes",
        title,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--what", nargs="+", choices=["steps", "scores"], default=["steps", "scores"]
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    for what in options.what:
        for name in options.networks:
            (steps if what == "steps" else scores)(name, options)


if __name__ == "__main__":
    main()
