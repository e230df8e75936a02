"""Compare the time of diagnose() and compact() with plain passes.

    python -m benchmarks.diagnosis [--networks vgg16 resnet18 resnet20 resnet50 vit_b_16] [--runs 3]

Each network is pruned by SynFlow with automatic rounds (to density 0.05, unless --density says
otherwise). Then a plain pass (forward and backward of the dense network at batch size 1), the
diagnosis and the compaction take turns. `--profile` prints instead in which functions of the
package a diagnosis spends its time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats

import torch

from benchmarks.pruning import argument_parser, network_of
from benchmarks.timing import environment, in_turn, table
from synflow_pl import compact, diagnose, prune
from synflow_pl.pruners import SynFlow


def compare(name: str, options: argparse.Namespace) -> None:
    """Print the times of a plain pass, a diagnosis and a compaction, or the profile."""
    network, shape = network_of(name)
    image = torch.ones(1, *shape)
    masks = prune(network, SynFlow(), density=options.density, rounds="auto", input_shape=shape)

    def plain_pass() -> None:
        network(image).sum().backward()
        network.zero_grad(set_to_none=True)

    def diagnosis() -> None:
        diagnose(network, masks, input_shape=shape)

    def compaction() -> None:
        compact(network, masks, input_shape=shape)

    if options.profile:
        diagnosis()
        profile = cProfile.Profile()
        profile.runcall(diagnosis)
        pstats.Stats(profile).sort_stats("cumulative").print_stats("synflow_pl", 30)
        return
    contenders = {"plain pass": plain_pass, "diagnosis": diagnosis, "compaction": compaction}
    table(in_turn(contenders, options.runs), "plain pass", f"{name}, {options.threads} threads")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(density=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    for name in options.networks:
        compare(name, options)


if __name__ == "__main__":
    main()
