"""How long pruning takes beside plain forward and backward passes: SynFlow on VGG-16, 100 rounds to density 0.01.

    python benchmarks/pruning.py [--pairs 5] [--density 0.01] [--rounds 100]

Both are timed in turn, so that a busy machine slows them alike; what counts is the median of the ratios.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time

import torch

from synflow_pl import prune
from synflow_pl.networks import VGG
from synflow_pl.pruners import SynFlow


def plain_passes(network: torch.nn.Module, count: int) -> float:
    """Seconds for forward and backward passes of the dense network on one image."""
    image = torch.ones(1, 3, 32, 32)
    started = time.perf_counter()
    for _ in range(count):
        network.zero_grad(set_to_none=True)
        network(image).sum().backward()
    return time.perf_counter() - started


def pruning(network: torch.nn.Module, density: float, rounds: int) -> float:
    """Seconds for pruning a copy."""
    network = copy.deepcopy(network)
    started = time.perf_counter()
    prune(network, SynFlow(), density=density, rounds=rounds, input_shape=(3, 32, 32))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = VGG(16).eval()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    plain_passes(network, 10), pruning(network, options.density, 10)  # both once, to warm up
    ratios = []
    for _ in range(options.pairs):
        passes = plain_passes(network, options.rounds)
        seconds = pruning(network, options.density, options.rounds)
        ratios.append(seconds / passes)
        print(f"{options.rounds} plain passes {passes:6.2f} s   {options.rounds} rounds {seconds:6.2f} s   ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
