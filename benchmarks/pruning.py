"""Compare the time and memory of SynFlow with plain passes and with a textbook implementation.

    python -m benchmarks.pruning [--networks vgg16 resnet18 resnet20] [--threads 1 2] [--runs 3]
        [--share 0.1] [--rounds 100] [--density 0.01] [--margins 0.5 0.99]
    python -m benchmarks.pruning --networks resnet50 vit_b_16 --density 0.05 --share 0
    python -m benchmarks.pruning --networks regnet_y_128gf --density 0.05 --once
    python -m benchmarks.pruning --device cuda --networks vgg16 resnet50 --share 0   # on a GPU

All prune to density 0.01, in 100 rounds and in as many as `rounds="auto"` takes with each of the
margins; memory and `--once` have the first of them. Every number of threads is measured in turn, by
default one and all. The textbook loop works like the code of the paper's authors: every pass
multiplies masks into the weights of each layer; every round takes magnitudes and restores signs,
calls `kthvalue` on all scores, and `where`. The textbook loop and the plain passes (forward and
backward of the dense network at batch size 1) do the same work in every round, so only the fraction
`--share` of their rounds is timed and extrapolated; 0 skips the textbook loop. Memory is the peak
above the loaded network in a separate process, relative to the size of the parameters. `--check`
compares masks in float64 instead. `--once` is for networks that take minutes: one automatic pruning
and its peak memory, in one process.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.timing import environment, give_back_at_once, grown, in_turn, reset_peak, table
from synflow_pl import Masks, prune
from synflow_pl.networks import VGG, ResNet, TinyResNet
from synflow_pl.pruners import SynFlow

NETWORKS = {
    "vgg16": (lambda: VGG(16), (3, 32, 32)),
    "resnet18": (lambda: TinyResNet(18), (3, 32, 32)),
    "resnet20": (lambda: ResNet(20), (3, 32, 32)),
    "resnet50": (lambda: torchvision.models.resnet50(), (3, 224, 224)),
    "vit_b_16": (lambda: torchvision.models.vit_b_16(), (3, 224, 224)),
    "regnet_y_128gf": (lambda: torchvision.models.regnet_y_128gf(), (3, 224, 224)),
    "vit_h_14": (lambda: torchvision.models.vit_h_14(), (3, 224, 224)),
}


class _Masked(nn.Module):
    """Convolution or linear layer whose weight is multiplied by a mask in each pass."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", torch.ones_like(layer.weight))

    def forward(self, signal: Tensor) -> Tensor:
        weight = self.layer.weight * self.mask
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(signal, weight, self.layer.bias)
        return nn.functional.linear(signal, weight, self.layer.bias)


def masked(network: nn.Module) -> tuple[nn.Module, dict[str, _Masked]]:
    """Return a copy of a network with masked layers, and these layers by weight name."""
    network = copy.deepcopy(network)
    layers = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            parent, _, own = name.rpartition(".")
            layers[f"{name}.weight"] = _Masked(module)
            setattr(network.get_submodule(parent), own, layers[f"{name}.weight"])
    return network, layers


def textbook(
    network: nn.Module, shape: tuple[int, ...], density: float, rounds: int, stop: int
) -> dict[str, Tensor]:
    """Prune with SynFlow as implemented by the paper's authors.

    Args:
        network: Network to prune, which is copied.
        shape: Shape (C, H, W) of its input.
        density: Fraction of weights kept, in (0, 1].
        rounds: Number of rounds of the schedule.
        stop: Number of rounds to run, at most ``rounds``.

    Returns:
        Masks by the name of the weight.
    """
    network, layers = masked(network.eval())
    one = next(network.parameters())
    image = torch.ones(1, *shape, dtype=one.dtype, device=one.device)
    total = sum(layer.mask.numel() for layer in layers.values())
    for index in range(1, stop + 1):
        with torch.no_grad():
            state = network.state_dict()
            signs = {name: tensor.sign() for name, tensor in state.items()}
            for tensor in state.values():
                tensor.abs_()
        # Biases and running means are additive terms, which synflow_pl treats as zero. They are
        # zeroed here too, so that the masks can be compared.
        kept = {
            name: tensor.clone()
            for name, tensor in state.items()
            if name.endswith(("bias", "running_mean"))
        }
        for name in kept:
            state[name].zero_()
        network(image).sum().backward()
        scores = {}
        with torch.no_grad():
            for name, layer in layers.items():
                scores[name] = (layer.layer.weight.grad * layer.layer.weight * layer.mask).abs_()
                layer.layer.weight.grad = None
            for name, tensor in state.items():
                if name in kept:
                    tensor.copy_(kept[name])
                tensor.mul_(signs[name])
            flat = torch.cat([score.flatten() for score in scores.values()])
            gone = int((1 - density ** (index / rounds)) * total)
            if gone > 0:
                threshold, _ = torch.kthvalue(flat, gone)
                zero, one_ = flat.new_tensor(0.0), flat.new_tensor(1.0)
                for name, layer in layers.items():
                    layer.mask.copy_(torch.where(scores[name] <= threshold, zero, one_))
        network.zero_grad(set_to_none=True)
    return {name: layer.mask.bool() for name, layer in layers.items()}


def prune_automatically(
    network: nn.Module, shape: tuple[int, ...], density: float, margin: float
) -> tuple[Masks, int]:
    """Prune by SynFlow with automatic rounds, and return the masks and the number of rounds.

    Args:
        network: Network, whose pruned weights are set to zero.
        shape: Shape (C, H, W) of its input.
        density: Fraction of weights kept, in (0, 1].
        margin: Fraction of the total flow that a round may prune, in (0, 1).
    """
    rounds: list[int] = []
    masks = prune(
        network,
        SynFlow(),
        density=density,
        rounds="auto",
        margin=margin,
        input_shape=shape,
        on_round=lambda index, *_: rounds.append(index),
        on_collapse="error",
    )
    return masks, len(rounds)


def compare(name: str, options: argparse.Namespace) -> None:
    """Time plain passes, synflow_pl and the textbook loop in turn, and print the ratios."""
    network, shape = network_of(name, options.device)
    image = torch.ones(1, *shape, device=options.device)
    some = max(1, round(options.rounds * (options.share or 0.1)))

    def passes() -> float:
        for _ in range(some):
            network.zero_grad(set_to_none=True)
            network(image).sum().backward()
        network.zero_grad(set_to_none=True)
        return options.rounds / some

    num_rounds: dict[float, int] = {}

    def fixed() -> None:
        prune(
            copy.deepcopy(network),
            SynFlow(),
            density=options.density,
            rounds=options.rounds,
            input_shape=shape,
        )

    def automatic(margin: float) -> None:
        _, num_rounds[margin] = prune_automatically(
            copy.deepcopy(network), shape, options.density, margin
        )

    def loop() -> float:
        textbook(network, shape, options.density, options.rounds, some)
        return options.rounds / some

    given = f"{options.rounds} rounds"
    chosen = {f"automatic rounds, margin {margin:g}": margin for margin in options.margins}
    contenders: dict[str, Callable[[], float | None]] = {
        "plain passes": passes,
        **{label: partial(automatic, margin) for label, margin in chosen.items()},
        given: fixed,
        **({"textbook loop": loop} if options.share else {}),
    }
    taken = in_turn(contenders, options.runs)
    table(taken, "plain passes", f"{name}, {torch.get_num_threads()} threads")
    for reference in (given, *chosen) if options.share else ():
        table({"textbook loop": taken["textbook loop"], reference: taken[reference]}, reference)
    for label, margin in chosen.items():
        ratio = statistics.median(
            ours.wall / plain.wall
            for ours, plain in zip(taken[label], taken["plain passes"], strict=True)
        )
        print(
            f"  {label}: {num_rounds[margin]} rounds, connected; each takes"
            f" {ratio * options.rounds / num_rounds[margin]:.2f} plain passes",
            flush=True,
        )


def memory(name: str, options: argparse.Namespace, what: str) -> float:
    """Return the peak memory above the loaded network, relative to the size of its parameters.

    It is called in a process of its own.

    Args:
        name: Key of ``NETWORKS``.
        options: Options of the command line.
        what: ``"in use"``: memory in use while pruning; ``"held"``: the same plus freed memory that
            the allocator keeps; ``"automatic"``: memory in use with automatic rounds; ``"plain
            pass"``: memory in use during a forward and backward pass.
    """
    torch.set_num_threads(max(options.threads))
    network, shape = network_of(name, options.device)

    def work(network: nn.Module, rounds: int | str) -> None:
        if what == "plain pass":
            network(torch.ones(1, *shape, device=options.device)).sum().backward()
        else:
            prune(
                network,
                SynFlow(),
                density=options.density,
                rounds=rounds,
                margin=options.margins[0],
                input_shape=shape,
            )

    if options.device == "cpu" and what != "held":
        give_back_at_once()
    return peak_memory(
        network, work, "auto" if what == "automatic" else options.rounds, options.device
    )


def peak_memory(
    network: nn.Module,
    work: Callable[[nn.Module, int | str], object],
    rounds: int | str,
    device: str = "cpu",
) -> float:
    """Return the peak memory of work above a loaded network, relative to its parameters' bytes.

    Args:
        network: The network.
        work: Function of a network and a number of rounds. It is called once before with 3 rounds,
            so that imports and buffers that the libraries keep are not counted.
        rounds: Number of rounds to measure.
        device: ``"cpu"`` or ``"cuda"``.
    """
    work(copy.deepcopy(network), 3)
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if device == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        held = reset_peak()
    work(network, rounds)
    return (torch.cuda.max_memory_allocated() - held if device == "cuda" else grown(held)) / size


def once(name: str, options: argparse.Namespace) -> str:
    """Return time and peak memory of one pruning with automatic rounds, as a sentence.

    It is called in a process of its own.
    """
    torch.set_num_threads(max(options.threads))
    network, shape = network_of(name)
    image = torch.ones(1, *shape)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        network(image).sum().backward()
        seconds.append(time.perf_counter() - started)
        network.zero_grad(set_to_none=True)
    plain = min(seconds)
    give_back_at_once()
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    held, started = reset_peak(), time.perf_counter()
    masks, rounds = prune_automatically(network, shape, options.density, options.margins[0])
    taken, peak = time.perf_counter() - started, grown(held)
    return (
        f"{name}, {torch.get_num_threads()} threads: {masks.kept:,} of {masks.total:,} weights"
        f" kept, connected, in {rounds} rounds and {taken:.0f} s; a plain pass takes"
        f" {plain:.1f} s, so a round takes {taken / rounds / plain:.2f} of them; peak memory"
        f" {peak / 1e9:.1f} GB above the network, {peak / size:.2f} times the parameters' bytes"
    )


def check(name: str, options: argparse.Namespace) -> None:
    """Compare the masks of the textbook loop and of synflow_pl in float64."""
    network, shape = network_of(name, options.device)
    network.double()
    expected = textbook(network, shape, options.density, options.rounds, options.rounds)
    ours: Masks = prune(
        copy.deepcopy(network),
        SynFlow(),
        density=options.density,
        rounds=options.rounds,
        input_shape=shape,
    )
    both = sum(int((ours[key] & mask).sum()) for key, mask in expected.items())
    either = sum(int((ours[key] | mask).sum()) for key, mask in expected.items())
    print(
        f"{name}: kept {ours.kept} of {ours.total}; intersection over union with the textbook loop"
        f" in float64 {both / either:.6f}"
    )


def network_of(name: str, device: str = "cpu") -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of ``NETWORKS`` in eval mode, and the shape (C, H, W) of its input."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    return build().eval().to(device), shape


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options networks, runs and density."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["vgg16", "resnet18", "resnet20"]
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.01)
    return parser


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--margins", nargs="+", type=float, default=[0.5, 0.99])
    parser.add_argument(
        "--threads", nargs="+", type=int, default=sorted({1, torch.get_num_threads()})
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    print(environment())
    for name in options.networks:
        if options.check:
            check(name, options)
            continue
        if options.once:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as alone:
                print(alone.apply(once, (name, options)), flush=True)
            continue
        for threads in options.threads:
            torch.set_num_threads(threads)
            compare(name, options)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as alone:
            peak = {
                what: alone.apply(memory, (name, options, what))
                for what in ("in use", "held", "automatic", "plain pass")
            }
        print(
            f"  peak memory {peak['in use']:.2f} times the parameters' bytes ({peak['held']:.2f}"
            f" with what the allocator keeps); {peak['automatic']:.2f} with automatic rounds;"
            f" a plain pass {peak['plain pass']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
