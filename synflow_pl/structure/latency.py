"""The FLOPs to keep for a latency, by bisection over compacted networks that are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synflow_pl.compaction import Compaction
from synflow_pl.flow import evaluating
from synflow_pl.graph.example_inputs import call
from synflow_pl.graph.network_copy import duplicate
from synflow_pl.masks import Masks
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import as_density
from synflow_pl.structure.rounds import BudgetTooSmall

__all__ = ["Ratio", "compare_latency", "flops_for_latency"]

_REPETITIONS = 25
_STEPS = 7


class Ratio(NamedTuple):
    """Latency of a network over that of another.

    Attributes:
        median: Median of ratios that were measured side by side.
        low: Their lower quartile.
        high: Their upper quartile.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} (quartiles {self.low:.3f} to {self.high:.3f})"


@torch.no_grad()
def compare_latency(
    network: nn.Module,
    other: nn.Module,
    inputs: tuple[Tensor, ...],
    repetitions: int = _REPETITIONS,
) -> Ratio:
    """Measure the latency of a network over that of another, in turns, in eval mode.

    Args:
        network: Network whose latency is the numerator.
        other: Network whose latency is the denominator.
        inputs: Inputs of both, as :func:`synflow_pl.flow.example_of` returns them.
        repetitions: Number of ratios; one more pass of each warms up.

    Example:
        >>> from torch import nn
        >>> small, large = nn.Linear(8, 8), nn.Linear(2048, 2048)
        >>> ratio = compare_latency(small, small, (torch.ones(1, 8),))
        >>> 0 < ratio.low <= ratio.median <= ratio.high
        True
    """
    ratios = []
    with evaluating(network), evaluating(other):
        for repetition in range(-1, repetitions):
            pair = [_seconds(each, inputs) for each in (network, other)]
            if repetition >= 0:
                ratios.append(pair[0] / pair[1])
    quartiles = torch.tensor(ratios, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    )
    return Ratio(*quartiles.tolist())


def _seconds(network: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    device = inputs[0].device
    _wait(device)
    started = time.perf_counter()
    call(network, inputs)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_for_latency(
    network: nn.Module,
    options: PruningOptions,
    inputs: tuple[Tensor, ...],
    attempt: Callable[..., Masks],
) -> tuple[float, str]:
    """Return the largest fraction of FLOPs at which the compacted network meets a latency.

    It is found by bisection to 1/128. Latencies are medians with noise, so another call may find
    another fraction.

    Args:
        network: Network under study, which is not changed; copies of it are pruned.
        options: Options with a ``latency``.
        inputs: Example inputs of the network, on which it is measured.
        attempt: Function that prunes a network with given ``options``.

    Returns:
        The fraction, and a note that states what was measured.

    Raises:
        ValueError: If no fraction that was tried meets the latency.
    """
    assert options.latency is not None
    wanted = float(as_density(options.latency, "latency"))
    low, high = 0.0, 1.0
    best: tuple[float, Ratio] | None = None
    fastest = Ratio(1.0, 1.0, 1.0)
    for _ in range(_STEPS):
        flops = (low + high) / 2
        attempted = replace(options, latency=None, flops=flops, on_collapse="ignore")
        copied = duplicate(network)
        try:
            masks = attempt(copied, options=attempted)
        except BudgetTooSmall:
            low = flops
            continue
        small = Compaction(copied, masks, inputs).network
        ratio = compare_latency(small, network, inputs)
        fastest = min(fastest, ratio)
        if ratio.median <= wanted:
            low, best = flops, (flops, ratio)
        else:
            high = flops
    if best is None:
        raise ValueError(
            f"latency: {options.latency} of the dense network's was not reached; the fastest"
            f" network that was tried takes {fastest} of it; choose a larger latency"
        )
    flops, ratio = best
    batch, threads = len(inputs[0]), torch.get_num_threads()
    where = f"{threads} threads" if inputs[0].device.type == "cpu" else str(inputs[0].device)
    note = (
        f"the latency is {ratio} of the dense network's, measured {_REPETITIONS} times at batch"
        f" {batch} on {where}, with {flops:.4g} of the FLOPs"
    )
    return flops, note
