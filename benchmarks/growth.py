"""Measure how SynFlow's time grows with rounds and parameters, and draw docs/growth.png.

    python -m benchmarks.growth [--threads 1] [--most 150e6] [--longest 1000]

The measurements are CPU seconds at density 0.01: 1 to 1000 rounds on ResNet-20, and 10 rounds on
networks of 0.1 M to 140 M parameters, the largest being VGG-19 at 224x224.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from benchmarks.timing import environment
from synflow_pl import prune
from synflow_pl.networks import FC, VGG, Conv, ResNet, TinyResNet
from synflow_pl.pruners import SynFlow

ROUNDS = (1, 3, 10, 30, 100, 300, 1000)
SIZES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "FC": (FC, (1, 28, 28)),
    "ResNet-20": (lambda: ResNet(20), (3, 32, 32)),
    "Conv": (Conv, (1, 28, 28)),
    "ResNet-20, wide": (lambda: ResNet(20, width=32), (3, 32, 32)),
    "ResNet-18": (lambda: TinyResNet(18), (3, 32, 32)),
    "VGG-16": (lambda: VGG(16), (3, 32, 32)),
    "ResNet-101 at 224x224": (lambda: torchvision.models.resnet101(), (3, 224, 224)),
    "VGG-19 at 224x224": (lambda: torchvision.models.vgg19(), (3, 224, 224)),
}


def seconds(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], rounds: int
) -> tuple[int, float]:
    """Prune a network with SynFlow; return the number of prunable weights and the CPU seconds.

    Args:
        build: Function that returns the network.
        shape: Shape (C, H, W) of its input.
        rounds: Number of rounds.
    """
    torch.manual_seed(0)
    network = build()
    started = time.process_time()
    masks = prune(network, SynFlow(), density=0.01, rounds=rounds, input_shape=shape)
    return masks.total, time.process_time() - started


def slope(points: list[tuple[float, float]]) -> float:
    """Return the exponent of a power law, fitted by least squares to the logarithms; 1 is linear.

    Args:
        points: Pairs of size and time.
    """
    xs, ys = ([math.log(point[axis]) for point in points] for axis in (0, 1))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=float, default=150e6)
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--picture", type=Path, default=Path("docs/growth.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    seconds(FC, (1, 28, 28), 2)
    by_rounds = []
    for rounds in ROUNDS:
        if rounds <= options.longest:
            by_rounds.append((rounds, seconds(*SIZES["ResNet-20"], rounds)[1]))
            print(f"ResNet-20, {rounds:>5} rounds {by_rounds[-1][1]:>9.2f} s", flush=True)
    by_size = []
    for name, (build, shape) in SIZES.items():
        if sum(p.numel() for p in build().to("meta").parameters()) <= options.most:
            total, spent = seconds(build, shape, 10)
            by_size.append((total, spent))
            print(f"{name:<28}{total:>13,} weights, 10 rounds {spent:>9.2f} s", flush=True)
    print(
        f"rounds: seconds grow with their power {slope(by_rounds[2:]):.2f} from 10 on; weights:"
        f" {slope(by_size):.2f}"
    )
    _draw(by_rounds, by_size, options.picture)


def _draw(by_rounds: list[tuple[int, float]], by_size: list[tuple[int, float]], path: Path) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(7, 2.6), layout="constrained", sharey=False
    )
    for axes, points, label in (
        (left, by_rounds, "rounds (ResNet-20)"),
        (right, by_size, "weights (10 rounds)"),
    ):
        axes.loglog(*zip(*points, strict=True), "o-", markersize=4)
        x, y = points[-1]
        axes.loglog([points[0][0], x], [y * points[0][0] / x, y], ":", color="grey", label="linear")
        axes.set(xlabel=label, ylabel="CPU seconds")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
