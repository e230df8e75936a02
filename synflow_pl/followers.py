"""Followers: biases and normalisation gains, which live exactly as long as their unit.

They never compete. When the weights of a unit have all been removed, what it would add on its own goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from synflow_pl.flow.recording import Value, record

__all__ = ["follow", "living_units", "of_units"]


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
    transposed = {
        f"{name}.weight": module for name, module in network.named_modules() if isinstance(module, nn.modules.conv._ConvTransposeNd)
    }
    living = {}
    for name, mask in masks.items():
        if name in transposed:
            # (in, out / groups, *kernel): the units of group g are fed by the inputs of group g.
            grouped = mask.unflatten(0, (transposed[name].groups, -1))
            living[name] = grouped.flatten(3).any(3).any(1).flatten()
        else:
            living[name] = mask.flatten(1).any(1)
    return living


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
