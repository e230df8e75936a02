"""Measure SynFlow's time and memory on every network, and whether the result is connected.

    python benchmarks/zoo.py [NAME ...] [--density 0.01] [--rounds 100] [--list]

Names may contain wildcards ("tiny_*"); without names all networks are pruned, from random weights,
and the largest take many minutes. Each network has a process of its own, whose peak memory includes
Python and torch (nearly all of the value of `fc`).
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable

import torch
from torch import nn

from synflow_pl import diagnose, prune
from synflow_pl.networks import FC, VGG, Conv, ResNet, TinyResNet, TinyVGG
from synflow_pl.pruners import SynFlow
from synflow_pl.runs.environment import environment

DIGITS, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)
Build = Callable[[], nn.Module]
of = functools.partial

ZOO: dict[str, tuple[Build, tuple[int, int, int]]] = {
    "fc": (FC, DIGITS),
    "conv": (Conv, DIGITS),
    **{
        f"vgg{d}{'_bn' * bn}": (of(VGG, d, batch_norm=bn), CIFAR)
        for d in (11, 13, 16, 19)
        for bn in (False, True)
    },
    **{f"resnet{d}": (of(ResNet, d), CIFAR) for d in (20, 32, 44, 56, 110, 1202)},
    **{f"wide_resnet{d}": (of(ResNet, d, width=32), CIFAR) for d in (20, 32, 44, 56, 110, 1202)},
    "resnet20_gains": (of(ResNet, 20, residual_gains=True), CIFAR),
    **{
        f"tiny_vgg{d}{'_bn' * bn}": (of(TinyVGG, d, batch_norm=bn), TINY)
        for d in (11, 13, 16, 19)
        for bn in (False, True)
    },
    **{f"tiny_resnet{d}": (of(TinyResNet, d), TINY) for d in (18, 34, 50, 101, 152)},
    **{
        f"wide_tiny_resnet{d}": (of(TinyResNet, d, width_factor=2), TINY)
        for d in (18, 34, 50, 101, 152)
    },
    "tiny_resnet18_gains": (of(TinyResNet, 18, residual_gains=True), TINY),
}
"""Every network of the package by name, and the shape of its images; tests use this list too."""


def measure(name: str, density: float, rounds: int) -> str:
    """Prune one network and return a line with the results.

    Args:
        name: Key of ``ZOO``.
        density: Fraction of weights kept, in (0, 1].
        rounds: Number of rounds.
    """
    torch.manual_seed(0)
    build, shape = ZOO[name]
    network = build()
    started = time.perf_counter()
    masks = prune(network, SynFlow(), density=density, rounds=rounds, input_shape=shape)
    seconds = time.perf_counter() - started
    diagnosis = diagnose(network, masks, input_shape=shape)
    # Linux counts in KiB, macOS in bytes.
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024)
        / 1e9
    )
    state = "alive" if diagnosis.alive else "dead"
    empty = f", {len(diagnosis.collapsed)} layers empty" if diagnosis.collapsed else ""
    return (
        f"{name:<22}{masks.total:>13,}{masks.kept:>13,}{seconds:>10.1f}{peak:>10.2f}  "
        f" {state}{empty}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=["*"])
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    options = parser.parse_args()
    names = [
        name for name in ZOO if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.names)
    ]
    if not names:
        parser.error(f"no network matches {' '.join(options.names)}; there are {', '.join(ZOO)}")
    if options.list:
        print("\n".join(names))
        return
    print(f"{environment()}, {options.rounds} rounds")
    print(f"{'network':<22}{'weights':>13}{'kept':>13}{'seconds':>10}{'peak GB':>10}   state")
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            print(alone.apply(measure, (name, options.density, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
