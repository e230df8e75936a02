"""Followers: biases and normalisation gains, which live exactly as long as their unit.

They never compete. When the weights of a unit have all been removed, what it would add on its own
goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from synflow_pl.graph.trace import Value, trace

__all__ = ["follow", "living_inputs", "living_units", "of_units"]


def follow(
    network: nn.Module,
    masks: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...] | None,
    *,
    mask_bias: bool,
    mask_norm: bool,
) -> dict[str, Tensor]:
    """Masks of what follows the units that ``masks`` leave.

    Args:
        network: the network under study.
        masks: of its prunable weights.
        inputs: an example, needed with ``mask_norm``: which normalisation reads which layer is seen
            in a pass.
        mask_bias: biases of the masked layers follow.
        mask_norm: gain and shift of a normalisation that reads a masked layer's output, and nothing
            else, follow.

    Returns:
        By parameter name, (units,) bool.
    """
    followers: dict[str, Tensor] = {}
    units = living_units(network, masks)
    if mask_bias:
        present = dict(network.named_parameters())
        for name, living in units.items():
            beside = name.removesuffix("weight") + "bias"
            if name.endswith("weight") and beside in present and beside not in masks:
                followers[beside] = living
    if mask_norm:
        assert inputs is not None
        for name, weight in _normalised(network, inputs).items():
            if (
                weight in units
                and name not in followers
                and units[weight].shape == network.get_parameter(name).shape
            ):
                followers[name] = units[weight]
    return followers


def living_units(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By weight name, (units,) bool: whether any weight into the unit lives."""
    return {
        name: _second(m, network, name) if _transposed(network, name) else m.flatten(1).any(1)
        for name, m in masks.items()
    }


def living_inputs(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By weight name, (inputs,) bool: whether any living weight reads the input channel."""
    return {
        name: m.flatten(1).any(1) if _transposed(network, name) else _second(m, network, name)
        for name, m in masks.items()
    }


def _transposed(network: nn.Module, name: str) -> bool:
    """Whether a weight is (in, out / groups, *kernel) instead of (out, in / groups, *kernel)."""
    return isinstance(
        network.get_submodule(name.rpartition(".")[0]), nn.modules.conv._ConvTransposeNd
    )


def _second(mask: Tensor, network: nn.Module, name: str) -> Tensor:
    """Whether anything lives for each channel of a mask's second dimension, which counts anew in
    each group.
    """
    groups = getattr(network.get_submodule(name.rpartition(".")[0]), "groups", 1)
    channels = mask.unflatten(0, (groups, -1)).any(1).flatten(0, 1)
    return channels.reshape(len(channels), -1).any(1)


def of_units(network: nn.Module, name: str, units: Tensor) -> Tensor:
    """(units,) bool, spread out over the weights into each unit, in the shape of the weight
    ``name``.
    """
    weight = network.get_parameter(name)
    module = network.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        rows = (
            units.view(module.groups, 1, -1)
            .expand(-1, weight.shape[0] // module.groups, -1)
            .flatten(0, 1)
        )
        return rows.view(*rows.shape, *[1] * (weight.dim() - 2)).expand_as(weight).contiguous()
    return units.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight).contiguous()


_NORMALISATIONS = (
    "native_batch_norm",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "native_group_norm",
)


def _normalised(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """By name of a normalisation's gain or shift, the name of the weight whose output it reads: of
    those that read the outputs of one weight and nothing else, however often.
    """
    recording = trace(network, inputs)
    present = dict(network.named_parameters())
    named = dict(recording.parameters)
    made_by: dict[int, str] = {}
    # By name, the weights whose outputs each gain or shift is applied to; None stands for anything
    # else.
    read: dict[str, set[str | None]] = {}
    for operation in recording.operations:
        values = operation.reads
        if operation.name in ("t", "alias", "detach") and values[0].number in named:
            named[operation.outputs[0].number] = named[values[0].number]  # type: ignore[union-attr]
            continue
        if operation.name in ("convolution", "mm", "addmm"):
            weight = operation.args[1] if operation.name == "convolution" else operation.args[-1]
            if weight.number in named:
                made_by[operation.outputs[0].number] = named[weight.number]  # type: ignore[union-attr]
        given = operation.bound() if operation.name in _NORMALISATIONS else {}
        own = [given[key].number for key in ("weight", "bias") if isinstance(given.get(key), Value)]
        for value in values:
            if (name := named.get(value.number)) in present:
                source = made_by.get(given["input"].number) if value.number in own else None
                read.setdefault(name, set()).add(source)
    return {
        name: next(iter(sources))  # type: ignore[misc]
        for name, sources in read.items()
        if len(sources) == 1 and None not in sources and present[name].dim() == 1
    }
