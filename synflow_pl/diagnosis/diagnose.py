"""Examine: look at a pruned network from every side, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from synflow_pl.bias_norm_masks import living_inputs, living_units
from synflow_pl.diagnosis.diagnosis import Diagnosis, Layer
from synflow_pl.diagnosis.flops import count_flops
from synflow_pl.diagnosis.homogeneity import inhomogeneous
from synflow_pl.diagnosis.scores import conservation_error, moments, synaptic_flow
from synflow_pl.flow import Connectivity, example_of, linearise, trace
from synflow_pl.masks import Masks
from synflow_pl.parameters import check_network, left_out, left_out_note

__all__ = ["diagnose"]


def diagnose(
    network: nn.Module,
    masks: Masks,
    *,
    input_shape: Sequence[int] | None = None,
    example_input: Tensor | Sequence[Tensor] | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> Diagnosis:
    """Say what was really kept.

    Args:
        network: the pruned network.
        masks: its masks.
        input_shape: (C, H, W), for networks with one input.
        example_input: instead of it, a tensor, or a tuple or list of the tensors that ``forward()``
            takes by position, with the batch dimension.
        scores: by name, in the masks' shapes, to look at instead of SynFlow's in the pruned
            network; of the weights kept only.

    Raises:
        TypeError: if the network is TorchScript or wrapped for parallel training, or
            ``example_input`` is not made of tensors.
        ValueError: if masks or scores are not the network's, neither input is given, the network
            fails on it, or a parameter has no values (lazy, meta).
    """
    check_network(network)
    masks.parameters(network)
    inputs = example_of(network, input_shape, example_input)
    recording = trace(network, inputs)
    skeleton = linearise(network, inputs, recording)
    paths = Connectivity(network, inputs, recording)
    effective = {name: int(on.count_nonzero()) for name, on in paths.effective(masks).items()}
    broken = None if any(effective.values()) else paths.first_disconnected(masks)
    flow, total, power = synaptic_flow(skeleton, network, masks)
    passing = {name: float(score.sum()) for name, score in flow.items()}
    told = {name: moments(score, masks[name], power) for name, score in flow.items()}
    sums = passing
    if scores is not None:
        _check(scores, masks)
        told = {name: moments(scores[name], masks[name]) for name in masks.weights}
        sums = {name: its.sum for name, its in told.items()}
    flops = count_flops(recording, masks)
    aside = left_out(network, masks)
    notes = (
        _DENSE if skeleton.gated else None,
        left_out_note(network, aside),
        flops.note,
        *skeleton.notes,
    )
    living = {name: masks[name] for name in masks.weights}
    units, read = living_units(network, living), living_inputs(network, living)
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
            score_mean=told[name].mean,
            score_variance=told[name].variance,
            score_sum=told[name].sum,
            flow=passing[name] / total if total else 0.0,
        )
        for name, mask in living.items()
    )
    return Diagnosis(
        kept=masks.kept,
        effective=sum(effective.values()),
        total=masks.total,
        alive=broken is None,
        layers=layers,
        flops=flops.dense,
        sparse_flops=flops.sparse,
        conservation_error=conservation_error(sums, skeleton.separating),
        inhomogeneous=inhomogeneous(network, recording, skeleton.unknown({})),
        left_out={part.module: part.size for part in aside},
        notes=tuple(note for note in notes if note is not None),
        broken=broken,
    )


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
                f"scores: those of {name!r} have shape {tuple(scores[name].shape)}, its mask {tuple(masks[name].shape)}"
            )
