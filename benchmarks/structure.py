"""Compare networks that are pruned by units to equal FLOPs, and Torch-Pruning's.

    pip install torch-pruning==1.6.0     # optional: its rows are left out without it
    python -m benchmarks.structure [--networks VGG-16 ...] [--flops 0.5 0.25 0.1] [--threads 2]
    python -m benchmarks.structure --table    # print structure.csv as Markdown, measure nothing

Each network is pruned to a fraction of its FLOPs by units with SynFlow (automatic rounds), SNIP (on
noise), magnitude and random scores (means over the weights of a unit), and by Torch-Pruning (global
ranking, magnitude and random importance, the best of 49 ratios for the same budget). The small
networks take turns with the dense one: a forward pass on torch and ONNX Runtime at batch sizes 1
and 64, and a training step at batch 64 (forward, backward, SGD with momentum). Speeds are medians
of ratios, turn by turn. Finished cells in the CSV are skipped.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.compact import SHAPE, engines, flops, has_onnx, size, to_onnx
from benchmarks.compact import build as build_for_cifar
from benchmarks.compact_step import stepper
from benchmarks.timing import environment, in_turn
from synflow_pl import compact, prune
from synflow_pl.flow import is_connected
from synflow_pl.pruners import SNIP, Magnitude, Random, SynFlow

NETWORKS = ("VGG-16", "ResNet-18", "ResNet-20", "MobileNetV2")
OURS: dict[str, dict[str, Any]] = {
    "SynFlow": {"pruner": SynFlow, "rounds": "auto"},
    "SNIP": {"pruner": SNIP},
    "magnitude": {"pruner": Magnitude, "group_score": "mean"},
    "random": {"pruner": Random, "group_score": "mean"},
}
THEIRS = {
    "Torch-Pruning magnitude": "MagnitudeImportance",
    "Torch-Pruning random": "RandomImportance",
}
BATCHES = (1, 64)
SPEEDS = (
    *(f"{engine} {batch}" for batch in BATCHES for engine in ("torch", "onnxruntime")),
    "step",
)
COLUMNS = ("network", "flops", "method", "connected", "reached", "parameters", "seconds", *SPEEDS)


def build(name: str) -> nn.Module:
    """Return a network with the same weights on every call, in eval mode.

    Args:
        name: One of ``NETWORKS``.
    """
    if name != "MobileNetV2":
        return build_for_cifar(name)
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    return mobilenet_v2(num_classes=10).eval()


def small_network(name: str, method: str, budget: float) -> tuple[nn.Module | None, bool, float]:
    """Return the small network, whether a path of kept weights is left, and the seconds it took.

    Args:
        name: One of ``NETWORKS``.
        method: Key of ``OURS`` or ``THEIRS``.
        budget: Fraction of FLOPs, in (0, 1].
    """
    network = build(name)
    started = time.perf_counter()
    if method in THEIRS:
        small = _torch_pruning(network, THEIRS[method], budget)
        return small, True, time.perf_counter() - started
    options = dict(OURS[method])
    pruner = options.pop("pruner")()
    batches = [(torch.randn(100, *SHAPE), torch.arange(100) % 10)] if method == "SNIP" else ()
    masks = prune(
        network,
        pruner,
        granularity="unit",
        flops=budget,
        input_shape=SHAPE,
        batches=batches,
        on_collapse="ignore",
        **options,
    )
    small = compact(network, masks, input_shape=SHAPE).eval()
    seconds = time.perf_counter() - started
    return small, is_connected(network, masks, (torch.ones(1, *SHAPE),)), seconds


def _torch_pruning(network: nn.Module, importance: str, budget: float) -> nn.Module | None:
    """Return the largest network within a budget of FLOPs that Torch-Pruning makes, if any."""
    import torch_pruning

    largest, most, best = budget * flops(network), 0, None
    for percent in range(2, 100, 2):
        torch.manual_seed(0)
        copied = copy.deepcopy(network)
        outputs = [module for module in copied.modules() if isinstance(module, nn.Linear)][-1:]
        torch_pruning.pruner.BasePruner(
            copied,
            torch.ones(1, *SHAPE),
            importance=getattr(torch_pruning.importance, importance)(),
            global_pruning=True,
            pruning_ratio=percent / 100,
            ignored_layers=outputs,
        ).step()
        if most < flops(copied) <= largest:
            most, best = flops(copied), copied
    return best.eval() if best is not None else None


def speeds(dense: nn.Module, small: nn.Module, runs: int) -> dict[str, float]:
    """Return how many times as fast as the dense network the small one is, by engine and batch."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{which}.onnx" for which in ("dense", "small")]
        if has_onnx():
            for network, path in zip((dense, small), paths, strict=True):
                to_onnx(network, path)
        for batch in BATCHES:
            images = torch.randn(batch, *SHAPE)
            pair = [
                engines(network, path, images)
                for network, path in zip((dense, small), paths, strict=True)
            ]
            for engine in pair[0].keys() & {"torch", "onnxruntime"}:
                found[f"{engine} {batch}"] = _ratio(
                    {"dense": pair[0][engine], "small": pair[1][engine]}, runs
                )
    found["step"] = _ratio(
        {"dense": stepper(dense, 64, False), "small": stepper(small, 64, False)}, runs
    )
    return found


def _ratio(contenders: Mapping[str, Callable[[], Any]], runs: int) -> float:
    """Return the median of the ratios of the dense network's seconds to the small one's."""
    quiet = {name: (lambda run=run: (run(), None)[1]) for name, run in contenders.items()}
    taken = in_turn(quiet, runs)
    pairs = zip(taken["dense"], taken["small"], strict=True)
    return statistics.median(dense.wall / small.wall for dense, small in pairs)


def cell(name: str, method: str, budget: float, runs: int) -> dict[str, Any]:
    """Return one row of the table."""
    dense = build(name)
    row: dict[str, Any] = {"network": name, "flops": budget, "method": method}
    small, connected, seconds = small_network(name, method, budget)
    if small is None:
        return row | {"connected": True, "reached": "not reached", "seconds": f"{seconds:.2f}"}
    row |= {
        "connected": connected,
        "reached": f"{flops(small) / flops(dense):.4f}",
        "parameters": f"{size(small) / size(dense):.4f}",
        "seconds": f"{seconds:.2f}",
    }
    return row | {key: f"{value:.2f}" for key, value in speeds(dense, small, runs).items()}


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| network | FLOPs | method | reached | parameters | seconds to prune |"
        + "".join(f" {column} |" for column in SPEEDS),
        "|" + " --- |" * (6 + len(SPEEDS)),
    ]
    for row in rows:
        mark = "" if row["connected"] == "True" else " †"
        entries = [
            row["network"],
            row["flops"],
            f"{row['method']}{mark}",
            row["reached"],
            row["parameters"],
            row["seconds"],
            *(row[column] for column in SPEEDS),
        ]
        lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines)


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--flops", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", choices=[*OURS, *THEIRS], default=[*OURS, *THEIRS])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=Path("structure.csv"))
    parser.add_argument("--table", action="store_true", help="print the CSV as Markdown and exit")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        print(environment(), flush=True)
        methods = options.methods
        try:
            import torch_pruning  # noqa: F401
        except ImportError:
            methods = [method for method in methods if method not in THEIRS]
            print("Torch-Pruning is not installed, so it is left out")
        for name in options.networks:
            for budget in options.flops:
                for method in methods:
                    done = {
                        (row["network"], float(row["flops"]), row["method"])
                        for row in read(options.output)
                    }
                    if (name, budget, method) in done:
                        continue
                    row = cell(name, method, budget, options.runs)
                    new = not options.output.is_file()
                    with open(options.output, "a", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS)
                        if new:
                            writer.writeheader()
                        writer.writerow(row)
                    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print("\nTimes as fast as the dense network. † no path of kept weights is left.\n")
    print(table(read(options.output)))


if __name__ == "__main__":
    main()
