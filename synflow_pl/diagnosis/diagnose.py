"""diagnose(): measure what pruning did to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.bias_norm_masks import active_inputs, active_units, has_units
from synflow_pl.diagnosis.diagnosis import Diagnosis, Layer
from synflow_pl.diagnosis.expansion import spectrum
from synflow_pl.diagnosis.flops import count_flops
from synflow_pl.diagnosis.homogeneity import inhomogeneous
from synflow_pl.diagnosis.score_statistics import conservation_error, moments, synaptic_flow
from synflow_pl.flow import Connectivity, example_of, linearise, number_units, trace
from synflow_pl.masks import Masks
from synflow_pl.parameters import check_network, left_out, left_out_note

__all__ = ["diagnose"]


def diagnose(
    network: nn.Module,
    masks: Masks,
    *,
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    spectra: bool = False,
) -> Diagnosis:
    """Measure density, effective density, FLOPs, flow and conservation of a pruned network.

    Args:
        network: The pruned network. Its pruned weights need not be zero.
        masks: Masks of the network.
        input_shape: Shape (C, H, W) of one image, for networks with one input.
        example_input: Alternative to ``input_shape``: arguments of ``forward()``, as
            :func:`synflow_pl.prune` takes them.
        scores: Scores of every masked parameter, by name and in the masks' shapes, whose
            statistics are reported instead of those of SynFlow's scores. Only the scores of kept
            weights count.
        spectra: Whether to compute the spectral gap and the Ramanujan bound of each layer, which
            takes seconds for layers of thousands of units (see
            :mod:`synflow_pl.diagnosis.expansion`).

    Returns:
        The diagnosis, which can be printed as a table or written as CSV or JSON.

    Raises:
        TypeError: If the network is TorchScript or wrapped for parallel training, or
            ``example_input`` is no tensor, tuple, list or dictionary.
        ValueError: If masks or scores are not the network's, neither input is given, the network
            fails on it, or a parameter has no values (lazy, meta).

    Example:
        >>> import torch
        >>> from synflow_pl import Masks, diagnose
        >>> network = torch.nn.Linear(2, 2, bias=False)
        >>> masks = Masks({"weight": torch.tensor([[True, False], [True, True]])})
        >>> diagnosis = diagnose(network, masks, input_shape=(2,))
        >>> diagnosis.density, diagnosis.flops, diagnosis.sparse_flops
        (0.75, 8, 6)
    """
    check_network(network)
    masks.parameters(network)
    inputs = example_of(network, input_shape, example_input)
    recording = trace(network, inputs)
    linear_network = linearise(network, inputs, recording)
    paths = Connectivity(network, inputs, recording)
    effective = {name: int(on.count_nonzero()) for name, on in paths.effective(masks).items()}
    broken = None if any(effective.values()) else paths.first_disconnected(masks)
    flow, total, power = synaptic_flow(linear_network, network, masks)
    flow_sums = {name: float(score.sum()) for name, score in flow.items()}
    statistics = {name: moments(score, masks[name], power) for name, score in flow.items()}
    score_sums = flow_sums
    if scores is not None:
        _check(scores, masks)
        statistics = {name: moments(scores[name], masks[name]) for name in masks.weights}
        score_sums = {name: layer.sum for name, layer in statistics.items()}
    flops = count_flops(recording, masks)
    without_mask = left_out(network, masks)
    notes = (
        _DENSE if linear_network.gated else None,
        left_out_note(network, without_mask),
        flops.note,
        *linear_network.notes,
    )
    weight_masks = {name: masks[name] for name in masks.weights}
    units, read = active_units(network, weight_masks), active_inputs(network, weight_masks)
    others = [name for name in weight_masks if not has_units(network, name)]
    for name, (unit, entering) in number_units(recording, others).items():
        units[name], read[name] = (_any_of(numbers, masks[name]) for numbers in (unit, entering))
    layers = tuple(
        Layer(
            name=name,
            shape=tuple(mask.shape),
            kept=int(mask.count_nonzero()),
            effective=effective[name],
            units=units[name].numel(),
            living_units=int(units[name].count_nonzero()),
            inputs=read[name].numel(),
            living_inputs=int(read[name].count_nonzero()),
            flops=flops.dense_of[name],
            sparse_flops=flops.sparse_of[name],
            score_mean=statistics[name].mean,
            score_variance=statistics[name].variance,
            score_sum=statistics[name].sum,
            flow=flow_sums[name] / total if total else 0.0,
            spectral_gap=found.gap if found else None,
            ramanujan=found.ramanujan if found else None,
        )
        for name, mask in weight_masks.items()
        for found in (spectrum(mask) if spectra else None,)
    )
    return Diagnosis(
        kept=masks.kept,
        effective=sum(effective.values()),
        total=masks.total,
        alive=broken is None,
        layers=layers,
        flops=flops.dense,
        sparse_flops=flops.sparse,
        conservation_error=conservation_error(score_sums, linear_network.separating),
        inhomogeneous=inhomogeneous(network, recording, linear_network.unknown({})),
        left_out={part.module: part.size for part in without_mask},
        notes=tuple(note for note in notes if note is not None),
        broken=broken,
    )


def _any_of(numbers: Tensor, mask: Tensor) -> Tensor:
    """Return for each number whether any entry of a mask that has it is True."""
    result = torch.zeros(int(numbers.max()) + 1, dtype=torch.bool)
    result[numbers[mask.to(numbers.device)]] = True
    return result


_DENSE = (
    "gates and attention count as dense connections: what weighs a signal is connected to all of it"
)


def _check(scores: Mapping[str, Tensor], masks: Masks) -> None:
    for name in masks.weights:
        if name not in scores:
            raise ValueError(
                f"scores: there are none of {name!r}; give those of every masked weight"
            )
        if scores[name].shape != masks[name].shape:
            raise ValueError(
                f"scores: those of {name!r} have shape {tuple(scores[name].shape)}, its mask"
                f" {tuple(masks[name].shape)}"
            )
