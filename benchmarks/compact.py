"""Measure latency, size and memory of dense, pruned and compacted networks on several engines.

    python -m benchmarks.compact [--networks VGG-16 ...] [--pruners synflow ...]
        [--densities 0.1 ...] [--threads 2]
    python -m benchmarks.compact --table    # print compact.csv as Markdown, measure nothing

The rows of a cell (network, pruner, density) are appended to the CSV when the cell ends; a later
call skips the cells in it. In a cell the dense, the pruned and the compacted network take turns on
torch, ONNX Runtime and OpenVINO (those that are installed), at batch sizes 1 and 64, in float32.
Taking turns makes a busy machine slow them alike; latencies are medians.

The networks are those for CIFAR-10, untrained, but with random BatchNorm shifts as training leaves
them: with zero shifts, compaction would have hardly any constants to propagate. SNIP scores on
noise. Peak memory is that of a process that loads the network and classifies 64 images with torch,
minus the memory of Python and torch (Linux only). Files are safetensors. The logits of each engine
are compared with those of torch before it is timed.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import environment, grown, reset_peak
from synflow_pl import Compaction, Masks, prune
from synflow_pl.flow import example_of, is_connected
from synflow_pl.networks import VGG, ResNet, TinyResNet
from synflow_pl.pruners import SNIP, Magnitude, SynFlow

SHAPE = (3, 32, 32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": lambda: VGG(16, batch_norm=True),
    "ResNet-18": lambda: TinyResNet(18, input_shape=SHAPE, num_classes=10),
    "ResNet-20": lambda: ResNet(20),
}
PRUNERS = {"synflow": SynFlow, "snip": SNIP, "magnitude": Magnitude}
ENGINES = ("torch", "onnxruntime", "openvino")
BATCHES = (1, 64)
SIZES = ("parameters", "MFLOPs", "file MB", "peak MB")
LATENCIES = {batch: [f"{engine} {batch}" for engine in ENGINES] for batch in BATCHES}
"""Columns of latencies in milliseconds, by batch size."""
COLUMNS = (
    "network",
    "pruner",
    "density",
    "what",
    "alive",
    *SIZES,
    *(column for batch in BATCHES for column in LATENCIES[batch]),
)


@torch.no_grad()
def build(name: str) -> nn.Module:
    """Return a network with the same weights on every call.

    Args:
        name: Key of ``NETWORKS``.
    """
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.normal_(std=0.1)
    return network


def cut(network: nn.Module, pruner: str, density: float) -> Masks:
    """Prune a network; SNIP scores on noise.

    Args:
        network: Network to prune in place.
        pruner: Key of ``PRUNERS``.
        density: Fraction of weights kept, in (0, 1].
    """
    batches = [(torch.randn(100, *SHAPE), torch.arange(100) % 10)] if pruner == "snip" else ()
    return prune(network, PRUNERS[pruner](), density=density, input_shape=SHAPE, batches=batches)


def flops(network: nn.Module) -> int:
    """Return the FLOPs of one image; a multiplication and an addition count as two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *SHAPE))
    return counter.get_total_flops()


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# -- engines


def to_onnx(network: nn.Module, path: Path) -> None:
    batch = {
        next(iter(inspect.signature(network.forward).parameters)): {0: torch.export.Dim("batch")}
    }
    torch.onnx.export(
        network,
        (torch.zeros(2, *SHAPE),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=batch,
    )


def with_zeros(dense: Path, masks: Masks, path: Path) -> None:
    """Write the ONNX file of the pruned network by masking the weights in that of the dense one.

    The export folds BatchNorm into the weights row by row, which keeps zeros.

    Args:
        dense: Path of the dense network's file.
        masks: Masks of the pruned network.
        path: Path of the file to write.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(dense)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, mask in masks.items():
        tensors[name].CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensors[name]) * mask.numpy(), name)
        )
    onnx.save(model, path)


def engines(network: nn.Module, path: Path, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return, for each engine, a function that runs the network on a batch.

    Args:
        network: Network in eval mode.
        path: Path of its ONNX file; without that file only torch is returned.
        images: Batch of images, (N, C, H, W).
    """
    threads, fed = torch.get_num_threads(), images.numpy()

    def eager() -> Tensor:
        with torch.inference_mode():
            return network(images)

    runners: dict[str, Callable[[], Tensor]] = {"torch": eager}
    if not path.is_file():
        return runners
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runners["onnxruntime"] = lambda: torch.from_numpy(session.run(None, {name: fed})[0])
    try:
        import openvino
    except ImportError:
        return runners
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(images.shape))
    # The default is bfloat16 on processors that support it.
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    )
    runners["openvino"] = lambda: torch.from_numpy(compiled(fed)[0])
    return runners


def has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return False
    return True


# -- measuring


def medians(
    runs: Mapping[tuple[str, str], Callable[[], Tensor]], seconds: float
) -> dict[tuple[str, str], float]:
    """Return the median latency of each function in milliseconds, measured in turn.

    Args:
        runs: Functions to time, each of which has run before.
        seconds: Duration of the measurement; each function runs at least three times.
    """
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(next(iter(taken.values()))) < 3:
        for key, run in runs.items():
            started = time.perf_counter()
            run()
            taken[key].append(1e3 * (time.perf_counter() - started))
    return {key: statistics.median(times) for key, times in taken.items()}


def _peak(path: str, threads: int) -> int:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        # A first pass, so that memory of the libraries themselves is not counted.
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(1))(torch.zeros(1, *SHAPE))
        held = reset_peak()
        network = torch.load(path, weights_only=False)
        network(torch.zeros(64, *SHAPE))
    return grown(held)


def peak(network: nn.Module, path: Path) -> int:
    """Return the peak memory, in bytes, of loading the network and classifying 64 images.

    The memory of Python and torch is subtracted. The result is the smaller one of two processes,
    each forked from one that has imported torch and computed nothing.

    Args:
        network: Network to measure.
        path: Path of the file that the processes load it from.
    """
    torch.save(network, path)
    with multiprocessing.get_context("forkserver").Pool(1, maxtasksperchild=1) as alone:
        return min(alone.apply(_peak, (str(path), torch.get_num_threads())) for _ in range(2))


def cell(
    name: str, pruner: str, density: float, seconds: float, folder: Path
) -> list[dict[str, object]]:
    """Return the rows of one network, pruned by one pruner to one density.

    Args:
        name: Key of ``NETWORKS``.
        pruner: Key of ``PRUNERS``.
        density: Fraction of weights kept, in (0, 1].
        seconds: Duration of the measurement of each batch size.
        folder: Folder for the files of the networks.
    """
    dense, network = build(name), build(name)
    masks = cut(network, pruner, density)
    inputs = example_of(network, SHAPE, None)
    networks = {
        "dense": dense,
        "pruned": network,
        "compacted": Compaction(network, masks, inputs).network.eval(),
    }
    paths = {what: folder / f"{what}.onnx" for what in networks}
    if has_onnx():
        paths["dense"] = folder / f"{name}.onnx"
        if not paths["dense"].is_file():
            to_onnx(dense, paths["dense"])
        with_zeros(paths["dense"], masks, paths["pruned"])
        to_onnx(networks["compacted"], paths["compacted"])
    rows: dict[str, dict[str, object]] = {}
    for what, one in networks.items():
        save_file(
            {key: tensor.contiguous() for key, tensor in one.state_dict().items()},
            folder / "network.safetensors",
        )
        memory = peak(one, folder / "network.pt")
        rows[what] = {
            "network": name,
            "pruner": pruner,
            "density": density,
            "what": what,
            "alive": what == "dense" or is_connected(network, masks, inputs),
            "parameters": size(one),
            "MFLOPs": round(flops(one) / 1e6, 2),
            "file MB": round((folder / "network.safetensors").stat().st_size / 1e6, 3),
            "peak MB": round(memory / 1e6, 1),
        }
    for batch in BATCHES:
        images = torch.randn(batch, *SHAPE)
        runs = {}
        for what, one in networks.items():
            runners = engines(one, paths[what], images)
            truth = runners["torch"]()
            for engine, run in runners.items():
                if not torch.allclose(run(), truth, rtol=0, atol=1e-4 * float(truth.abs().max())):
                    raise ValueError(f"{engine} gives something else than torch for {name}, {what}")
                runs[what, engine] = run
        for (what, engine), milliseconds in medians(runs, seconds).items():
            rows[what][f"{engine} {batch}"] = round(milliseconds, 3)
    return list(rows.values())


# -- tables


def read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def summary(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table of FLOPs and speed of compacted networks relative to dense ones."""
    pruners = [*dict.fromkeys(row["pruner"] for row in rows)]
    lines = [
        f"| network | density | {' | '.join(pruners)} |",
        "| --- | --- |" + " --- |" * len(pruners),
    ]
    cells = {(row["network"], row["density"], row["pruner"], row["what"]): row for row in rows}
    for name, density in dict.fromkeys((row["network"], row["density"]) for row in rows):
        entries = []
        for pruner in pruners:
            dense, small = (
                cells.get((name, density, pruner, what)) for what in ("dense", "compacted")
            )
            if dense is None or small is None:
                entries.append("")
                continue
            fewer = _over(dense, small, "MFLOPs")
            faster = [
                " / ".join(_over(dense, small, column) for column in LATENCIES[batch])
                for batch in BATCHES
            ]
            entries.append(f"{fewer}; {'; '.join(faster)}{_dead(small)}")
        lines.append(f"| {name} | {density} | {' | '.join(entries)} |")
    return "\n".join(lines)


def details(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table for each network: sizes, latencies, and speed relative to dense."""
    columns = [column for batch in BATCHES for column in LATENCIES[batch]]
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        lines += [
            f"| {name} | {' | '.join([*SIZES, *columns])} |",
            "| --- |" + " --- |" * (len(SIZES) + len(columns)),
        ]
        mine = [row for row in rows if row["network"] == name]
        dense = {(row["pruner"], row["density"]): row for row in mine if row["what"] == "dense"}
        typical = dict(next(iter(dense.values())))
        for column in columns:
            measured = [float(row[column]) for row in dense.values() if row[column]]
            typical[column] = str(statistics.median(measured)) if measured else ""
        for row in [typical, *(row for row in mine if row["what"] != "dense")]:
            other = dense[row["pruner"], row["density"]]
            label = (
                "dense"
                if row is typical
                else f"{row['pruner']} {row['density']}, {row['what']}{_dead(row)}"
            )
            cells = [
                label,
                f"{int(row['parameters']):,}",
                *(f"{float(row[column]):.1f}" for column in SIZES[1:]),
            ]
            for column in columns:
                ratio = "" if row is typical else f" ({_over(other, row, column)})"
                cells.append(f"{float(row[column]):.1f}{ratio}" if row[column] else "")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def tell(rows: list[dict[str, str]]) -> None:
    print(
        f"Times fewer FLOPs; times as fast on {' / '.join(ENGINES)} at batch"
        f" {'; '.join(map(str, BATCHES))}. † no path left.\n"
    )
    print(summary(rows))
    print(
        "\nMilliseconds, and in brackets how many times as fast as the dense network beside it.\n"
    )
    print(details(rows))


def _dead(row: dict[str, str]) -> str:
    return "" if row["alive"] == "True" else " †"


def _over(dense: dict[str, str], other: dict[str, str], column: str) -> str:
    return (
        f"{float(dense[column]) / float(other[column]):.1f}"
        if dense[column] and other[column]
        else "-"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--pruners", nargs="+", choices=[*PRUNERS], default=[*PRUNERS])
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.01, 0.001])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="seconds per cell and batch size, at least three runs",
    )
    parser.add_argument("--output", type=Path, default=Path("compact.csv"))
    parser.add_argument("--table", action="store_true", help="print the CSV as Markdown and exit")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.table:
        return tell(read(options.output))
    print(environment())
    multiprocessing.set_forkserver_preload(["torch", "synflow_pl.networks"])
    os.environ["MALLOC_MMAP_THRESHOLD_"] = (
        "131072"  # for the processes of `peak`: glibc releases each tensor when it is freed
    )
    with tempfile.TemporaryDirectory() as made:
        for name in options.networks:
            for pruner in options.pruners:
                for density in options.densities:
                    if any(
                        (row["network"], row["pruner"], float(row["density"]))
                        == (name, pruner, density)
                        for row in read(options.output)
                    ):
                        continue
                    started = time.perf_counter()
                    rows = cell(name, pruner, density, options.seconds, Path(made))
                    fresh = not options.output.is_file()
                    with open(options.output, "a", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS)
                        if fresh:
                            writer.writeheader()
                        writer.writerows(rows)
                    print(
                        f"{name}, {pruner} {density}: {time.perf_counter() - started:.0f} s",
                        flush=True,
                    )
    tell(read(options.output))


if __name__ == "__main__":
    main()
