"""Narrower dense networks with as many weights, or as many FLOPs, as a pruned network.

A sweep trains them as baselines: pruning pays only where the sparse network is more accurate than
a dense one of the same cost.
"""

from __future__ import annotations

import inspect
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from synflow_pl.cli.command import parse_fit
from synflow_pl.cli.errors import import_class
from synflow_pl.cli.sweep_commands import fit_options
from synflow_pl.diagnosis import diagnose
from synflow_pl.io import atomic_write
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import SynFlow
from synflow_pl.pruning import prune
from synflow_pl.runs.sweep_grid import NARROWER, Task
from synflow_pl.schedules import as_density

__all__ = ["DenseBaseline", "dense_baseline", "width_of"]

_WIDTHS = ("width", "width_factor")
_STEPS = 512
"""Number of values tried for a width factor: the channels of a VGG's or ResNet's widest layer."""


@dataclass(frozen=True)
class DenseBaseline:
    """Sizes of a narrower dense network and of the full-width network that it is compared with.

    The width is chosen so that the cost ``like`` is as close as possible to that of the full-width
    network pruned to ``density``, or in a sweep over FLOPs to that fraction of them.

    Attributes:
        like: Cost that is matched, ``"parameters"`` or ``"flops"``.
        density: Density of the pruned network.
        argument: Name of the network's argument that sets its width.
        width: Value of that argument in the narrower network.
        whole_width: Value of that argument in the full-width network.
        weights: Number of prunable weights of the narrower network.
        flops: FLOPs of the narrower network for one image.
        whole_weights: Number of prunable weights of the full-width network.
        whole_flops: FLOPs of the full-width network for one image.
    """

    like: str
    density: float
    argument: str
    width: float
    whole_width: float
    weights: int
    flops: int
    whole_weights: int
    whole_flops: int

    def save(self, run: Path) -> None:
        """Write the sizes as JSON into the folder of a run."""
        with atomic_write(run / NARROWER) as file:
            file.write((json.dumps(asdict(self), indent=1) + "\n").encode())


def width_of(task: Task) -> str:
    """Return the argument of a task's network that sets its width.

    Args:
        task: Task of a sweep.

    Raises:
        ValueError: If the network has no such argument.
    """
    return _width_of(parse_fit(fit_options(task)).options.model.network.class_path)


def dense_baseline(task: Task) -> DenseBaseline:
    """Return the width that makes a network narrower at the cost of a task, and the sizes.

    Args:
        task: Task of a sweep whose ``like`` names the cost to match.

    Raises:
        ValueError: If the network has no argument that sets its width.
    """
    assert task.like is not None
    network = parse_fit(fit_options(task)).options.model.network
    shape = network.init_args.get("input_shape")
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in network.init_args.items()
    }
    return _search(
        network.class_path,
        tuple(given.items()),
        tuple(shape),
        task.density,
        task.like,
        task.budget,
    )


@cache
def _search(
    path: str,
    arguments: tuple[tuple[str, Any], ...],
    shape: tuple[int, ...],
    density: float,
    like: str,
    budget: str,
) -> DenseBaseline:
    given: dict[str, Any] = dict(arguments)
    name = _width_of(path)
    full = given.get(name, inspect.signature(import_class(path)).parameters[name].default)

    def build(width: float, device: str = "meta") -> nn.Module:
        with torch.device(device):
            return import_class(path)(**{**given, name: width})

    widths: Sequence[float] = (
        range(1, full + 1) if isinstance(full, int) and name == "width" else _factors(full)
    )
    measure = _weights if like == "parameters" else lambda network: _flops(network, shape)
    if like == "parameters":
        target = int(as_density(density) * _weights(build(full)))
    elif budget == "flops":
        target = int(as_density(density) * _flops(build(full), shape))
    else:
        torch.manual_seed(0)
        pruned = build(full, "cpu")
        masks = prune(
            pruned,
            SynFlow(),
            density=Fraction(str(density)),
            input_shape=shape,
            on_collapse="ignore",
        )
        target = diagnose(pruned, masks, input_shape=shape).sparse_flops
    above = bisect_left(widths, target, key=lambda width: measure(build(width)))
    near = widths[max(0, above - 1) : above + 1]
    width = min(near, key=lambda width: abs(measure(build(width)) - target))
    sizes = [
        count
        for network in (build(width), build(full))
        for count in (_weights(network), _flops(network, shape))
    ]
    return DenseBaseline(like, density, name, width, full, *sizes)


def _width_of(path: str) -> str:
    for name in _WIDTHS:
        if name in inspect.signature(import_class(path)).parameters:
            return name
    raise ValueError(
        f"{path} has no argument {' or '.join(_WIDTHS)}, so that there is no narrower one; take its"
        " control out of the sweep"
    )


def _factors(full: float) -> list[float]:
    return [full * step / _STEPS for step in range(1, _STEPS + 1)]


def _weights(network: nn.Module) -> int:
    return sum(weight.numel() for weight in prunable(network).values())


def _flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the FLOPs of one image, counting a multiply-accumulate as two."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, *shape, device=device))
    return counter.get_total_flops()
