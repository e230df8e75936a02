"""Followers: biases and normalisation gains, which live exactly as long as their unit.

They never compete. When the weights of a unit have all been removed, what it would add on its own goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from synflow_pl.flow.recording import Value, record

__all__ = ["follow", "living_inputs", "living_units", "of_units"]


def follow(
    network: nn.Module, masks: Mapping[str, Tensor], inputs: tuple[Tensor, ...] | None, *, bias: bool, norm: bool
) -> dict[str, Tensor]:
    """Masks of what follows the units that ``masks`` leave.

    Args:
        network: the network under study.
        masks: of its prunable weights.
        inputs: an example, needed with ``norm``: which normalisation reads which layer is seen in a pass.
        bias: biases of the masked layers follow.
        norm: gain and shift of a normalisation that reads a masked layer's output, and nothing else, follow.

    Returns:
        By parameter name, (units,) bool.
    """
    followers: dict[str, Tensor] = {}
    units = living_units(network, masks)
    if bias:
        present = dict(network.named_parameters())
        for name, living in units.items():
            beside = name.removesuffix("weight") + "bias"
            if name.endswith("weight") and beside in present and beside not in masks:
                followers[beside] = living
    if norm:
        assert inputs is not None
        for name, weight in _normalised(network, inputs).items():
            if weight in units:
                followers[name] = units[weight]
    return followers


def living_units(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By weight name, (units,) bool: whether any weight into the unit lives."""
    return {name: _second(m, network, name) if _transposed(network, name) else m.flatten(1).any(1) for name, m in masks.items()}


def living_inputs(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By weight name, (inputs,) bool: whether any living weight reads the input channel."""
    return {name: m.flatten(1).any(1) if _transposed(network, name) else _second(m, network, name) for name, m in masks.items()}


def _transposed(network: nn.Module, name: str) -> bool:
    """Whether a weight is (in, out / groups, *kernel) instead of (out, in / groups, *kernel)."""
    return isinstance(network.get_submodule(name.rpartition(".")[0]), nn.modules.conv._ConvTransposeNd)


def _second(mask: Tensor, network: nn.Module, name: str) -> Tensor:
    """Whether anything lives for each channel of a mask's second dimension, which counts anew in each group."""
    groups = getattr(network.get_submodule(name.rpartition(".")[0]), "groups", 1)
    channels = mask.unflatten(0, (groups, -1)).any(1).flatten(0, 1)
    return channels.reshape(len(channels), -1).any(1)


def of_units(network: nn.Module, name: str, units: Tensor) -> Tensor:
    """(units,) bool, spread out over the weights into each unit, in the shape of the weight ``name``."""
    weight = network.get_parameter(name)
    module = network.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        rows = units.view(module.groups, 1, -1).expand(-1, weight.shape[0] // module.groups, -1).flatten(0, 1)
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
    """By name of a normalisation's gain or shift, the name of the weight whose output it reads."""
    recording = record(network, inputs)
    made_by: dict[int, str] = {}
    norms: dict[str, str] = {}
    for operation in recording.operations:
        values = [leaf for leaf in operation.args if isinstance(leaf, Value)]
        if operation.name in ("t", "alias") and values[0].number in recording.parameters:
            recording.parameters[operation.outputs[0].number] = recording.parameters[values[0].number]  # type: ignore[union-attr]
        elif operation.name in ("convolution", "mm", "addmm"):
            weight = operation.args[1] if operation.name == "convolution" else operation.args[-1]
            made_by[operation.outputs[0].number] = recording.parameters.get(weight.number, "")  # type: ignore[union-attr]
        elif operation.name in _NORMALISATIONS and values[0].number in made_by:
            for value in values[1:3]:
                name = recording.parameters.get(value.number)
                if name is not None and name in dict(network.named_parameters()):
                    norms[name] = made_by[values[0].number]
    return norms
