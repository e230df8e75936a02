"""Compare a training step of a compacted network with that of the dense network.

    python -m benchmarks.compact_step [--density 0.01] [--batch 128] [--runs 10] [--threads 2]

The network is VGG-16, pruned by SynFlow. A step is forward, backward and SGD with momentum. The
contenders take turns; the results are the medians of the ratios, turn by turn, in wall-clock and
CPU seconds, the ratio of the FLOPs, and a profile. `channels last` is `--model.channels_last true`.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.compact import SHAPE, build, cut, flops, size
from benchmarks.timing import environment, in_turn
from synflow_pl import Compaction
from synflow_pl.compaction import freeze
from synflow_pl.flow import example_of


def stepper(network: nn.Module, batch: int, channels_last: bool) -> Callable[[], None]:
    form = torch.channels_last if channels_last else torch.contiguous_format
    network = copy.deepcopy(network).train().to(memory_format=form)
    images, labels = (
        torch.randn(batch, *SHAPE).contiguous(memory_format=form),
        torch.arange(batch) % 10,
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"VGG-16, density {options.density}, batch {options.batch}: {environment()}")
    network = build("VGG-16")
    masks, inputs = cut(network, "synflow", options.density), example_of(network, SHAPE, None)
    networks = {
        "whole": network,
        "compacted": Compaction(network, masks, inputs, training=True).network,
        "dead units frozen": Compaction(
            network, freeze(network, masks, inputs), inputs, training=True
        ).network,
    }
    runs = {
        (name, last): stepper(one, options.batch, last)
        for last in (False, True)
        for name, one in networks.items()
    }
    taken = in_turn(
        {f"{name}{', channels last' * last}": run for (name, last), run in runs.items()},
        options.runs,
    )
    print(
        f"{'':<36}{'parameters':>12}{'FLOPs':>8}{'s (clock)':>11}   times faster by the clock   by"
        " the processor's seconds"
    )
    for (name, last), mine in zip(runs, taken.values(), strict=True):
        # Relative to the full network in the same memory format.
        other = taken["whole, channels last" if last else "whole"]
        faster = [
            sorted(b[clock] / a[clock] for a, b in zip(mine, other, strict=True))
            for clock in (0, 1)
        ]
        ratios_text = [
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            for ratios in faster
        ]
        fewer, seconds = (
            flops(network) / flops(networks[name].eval()),
            statistics.median(run.wall for run in mine),
        )
        label = f"{name}{', channels last' * last}"
        print(
            f"{label:<36}{size(networks[name]):>12,}{fewer:>8.2f}{seconds:>11.3f}  "
            f" {ratios_text[0]:<28}{ratios_text[1]}"
        )
    for name in ("whole", "compacted"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            runs[name, False]()
        print(f"\n{name}:")
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40
            )
        )


if __name__ == "__main__":
    main()
