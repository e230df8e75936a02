"""What sparsity does on real engines: latency, FLOPs, parameters, file size and memory of dense, pruned and compacted networks.

    python benchmarks/compact.py [--networks vgg16_bn ...] [--pruners synflow ...] [--densities 0.1 ...] [--threads 2]
    python benchmarks/compact.py --step [--density 0.01]     # one training step of VGG-16, and where its time goes

ResNet-18 is the one for 64x64 images (``tiny_resnet18``). Latencies are medians, the engines taking turns, so that a busy machine slows
them alike. ONNX Runtime and OpenVINO are measured where they are installed. Peak memory is that of a process of its own, Python and
torch included, that loads the network and classifies a batch of 64.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from synflow_pl import Compaction, Masks, prune
from synflow_pl.compaction import freeze
from synflow_pl.flow import example_of
from synflow_pl.pruners import SNIP, Magnitude, SynFlow

PRUNERS = {"synflow": SynFlow, "snip": SNIP, "magnitude": Magnitude}


def flops(network: nn.Module, images: Tensor) -> int:
    """Of one image; a multiplication and an addition are two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images[:1])
    return counter.get_total_flops()


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def medians(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of each, measured in turn for so long, after two warm-ups."""
    for run in (*runs.values(), *runs.values()):
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(next(iter(taken.values()))) < 3:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in taken.items()}


def engines(network: nn.Module, images: Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """By engine, what runs the network on these images."""

    def eager() -> None:
        with torch.inference_mode():
            network(images)

    found: dict[str, Callable[[], object]] = {"torch": eager}
    path = folder / "network.onnx"
    try:
        import onnxruntime
    except ImportError:
        return found
    torch.onnx.export(network, (images,), path, dynamo=True, external_data=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: images.numpy()}
    found["ort"] = lambda: session.run(None, fed)
    try:
        import openvino
    except ImportError:
        return found
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    found["openvino"] = lambda: compiled(images.numpy())
    return found


def _peak(path: str, shape: tuple[int, ...]) -> float:
    """Peak megabytes, Python and torch included, of a process that loads a whole pickled network and classifies 64 images."""
    network = torch.load(path, weights_only=False)
    with torch.inference_mode():
        network(torch.randn(64, *shape))
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 1e6


def peak(network: nn.Module, shape: tuple[int, ...], folder: Path) -> float:
    path = folder / "network.pt"
    torch.save(network, path)
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        return alone.apply(_peak, (str(path), shape))


def pruned(name: str, pruner: str, density: float, rounds: int | None = None) -> tuple[nn.Module, Masks, tuple[int, ...]]:
    torch.manual_seed(0)
    build, shape = ZOO[name]
    network = build().eval()
    classes = network(torch.zeros(1, *shape)).shape[1]
    batches = [(torch.randn(100, *shape), torch.arange(100) % classes)] if pruner == "snip" else ()
    return network, prune(network, PRUNERS[pruner](), density=density, rounds=rounds, input_shape=shape, batches=batches), shape


def row(label: str, network: nn.Module, shape: tuple[int, ...], seconds: float) -> str:
    network.eval()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cells = []
        for batch in (1, 64):
            images = torch.randn(batch, *shape)
            cells.append(" / ".join(f"{ms:.1f}" for ms in medians(engines(network, images, folder), seconds).values()))
        torch.save(network.state_dict(), folder / "state.pt")
        file = (folder / "state.pt").stat().st_size / 1e6
        memory = peak(network, shape, folder)
    counted = flops(network, torch.randn(1, *shape)) / 1e6
    return f"| {label} | {size(network):,} | {counted:.1f} | {file:.2f} | {memory:.0f} | {cells[0]} | {cells[1]} |"


def step(density: float, batch: int, seconds: float, threads: int, rounds: int | None) -> None:
    """One training step of VGG-16, whole and compacted in both ways."""
    network, masks, shape = pruned("vgg16_bn", "synflow", density, rounds)
    inputs = example_of(network, shape, None)
    networks = {
        "whole": network,
        "compacted": Compaction(network, masks, inputs, training=True).network,
        "compacted, dead units frozen": Compaction(network, freeze(network, masks, inputs), inputs, training=True).network,
    }
    images, labels = torch.randn(batch, *shape), torch.arange(batch) % 10
    runs: dict[str, Callable[[], object]] = {}
    for name, one in networks.items():
        optimizer = torch.optim.SGD(one.train().parameters(), lr=0.01, momentum=0.9)

        def run(one: nn.Module = one, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(one(images), labels).backward()
            optimizer.step()

        runs[name] = run
    times = medians(runs, seconds)
    whole = flops(copy.deepcopy(network).eval(), images)
    print(f"one step of VGG-16, density {density}, batch {batch}, {threads} threads")
    for name, one in networks.items():
        fewer, faster = whole / flops(copy.deepcopy(one).eval(), images), times["whole"] / times[name]
        print(f"{name:<30}{size(one):>12,} parameters{fewer:>7.2f} times fewer FLOPs{times[name]:>8.0f} ms{faster:>7.2f} times faster")
    for name in ("whole", "compacted"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            runs[name]()
        print(f"\n{name}:")
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16_bn", "tiny_resnet18", "resnet20"])
    parser.add_argument("--pruners", nargs="+", choices=[*PRUNERS], default=[*PRUNERS])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.01, 0.001])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each network and batch")
    parser.add_argument("--rounds", type=int, default=None, help="of SynFlow; by default its own 100")
    parser.add_argument("--step", action="store_true", help="measure a training step instead")
    parser.add_argument("--density", type=float, default=0.01, help="of the training step")
    parser.add_argument("--batch", type=int, default=128, help="of the training step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    if options.step:
        return step(options.density, options.batch, options.seconds, options.threads, options.rounds)
    print("| network | parameters | MFLOPs | file, MB | peak, MB | ms, batch 1 | ms, batch 64 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.networks:
        build, shape = ZOO[name]
        print(row(f"{name}, dense", build(), shape, options.seconds), flush=True)
        for pruner in options.pruners:
            for density in options.densities:
                network, masks, _ = pruned(name, pruner, density, options.rounds if pruner == "synflow" else None)
                if pruner == options.pruners[0]:
                    print(row(f"{name}, {pruner} {density}, zeros alone", network, shape, options.seconds), flush=True)
                small = Compaction(network, masks, example_of(network, shape, None)).network
                print(row(f"{name}, {pruner} {density}, compacted", small, shape, options.seconds), flush=True)


if __name__ == "__main__":
    main()
