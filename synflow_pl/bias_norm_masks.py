"""Masks of biases and normalisation parameters, derived from the masks of the weights.

Biases, gains and shifts are never ranked. Each is kept exactly as long as its unit has a kept
weight, so that a unit without kept weights adds nothing of its own. :class:`synflow_pl.Masks` calls
these masks *followers*.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from synflow_pl.graph import operators
from synflow_pl.graph.trace import Value, trace

__all__ = [
    "active_inputs",
    "active_units",
    "compute_bias_norm_masks",
    "expand_units",
    "has_units",
    "is_transposed",
]


def compute_bias_norm_masks(
    network: nn.Module,
    masks: Mapping[str, Tensor],
    inputs: tuple[Tensor, ...] | None,
    *,
    mask_bias: bool,
    mask_norm: bool,
) -> dict[str, Tensor]:
    """Return masks of the biases, gains and shifts that belong to the units of masked layers.

    Args:
        network: Network under study.
        masks: Masks of its prunable weights, by parameter name.
        inputs: Example inputs, required with ``mask_norm``, since a forward pass shows which
            normalisation reads which layer.
        mask_bias: Whether to mask the biases of masked layers.
        mask_norm: Whether to mask gains and shifts of BatchNorms and GroupNorms that read the
            output of one masked layer and nothing else.

    Returns:
        Bool masks (units,), by parameter name.
    """
    followers: dict[str, Tensor] = {}
    layers = {name: mask for name, mask in masks.items() if has_units(network, name)}
    units = active_units(network, layers)
    if mask_bias:
        parameters = dict(network.named_parameters())
        for name, active in units.items():
            bias = name.removesuffix("weight") + "bias"
            if name.endswith("weight") and bias in parameters and bias not in masks:
                followers[bias] = active
    if mask_norm:
        assert inputs is not None
        for name, weight in _normalised_weights(network, inputs).items():
            if (
                weight in units
                and name not in followers
                and units[weight].shape == network.get_parameter(name).shape
            ):
                followers[name] = units[weight]
    return followers


def active_units(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return bool tensors (units,), by weight name, True for units with a kept input weight."""
    return {
        name: _any_by_second(mask, network, name)
        if is_transposed(network, name)
        else mask.flatten(1).any(1)
        for name, mask in masks.items()
    }


def active_inputs(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return bool tensors (inputs,), by weight name, True for inputs that a kept weight reads."""
    return {
        name: mask.flatten(1).any(1)
        if is_transposed(network, name)
        else _any_by_second(mask, network, name)
        for name, mask in masks.items()
    }


_UNITS_FIRST = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.MultiheadAttention,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
)


def has_units(network: nn.Module, name: str) -> bool:
    """Return whether the dimension of a weight along which its units lie is known, by its class.

    Args:
        network: Network that has the weight.
        name: Name of the weight.
    """
    return isinstance(network.get_submodule(name.rpartition(".")[0]), _UNITS_FIRST)


def is_transposed(network: nn.Module, name: str) -> bool:
    """Return whether a weight has the shape (in, out / groups, *kernel)."""
    return isinstance(
        network.get_submodule(name.rpartition(".")[0]), nn.modules.conv._ConvTransposeNd
    )


def _any_by_second(mask: Tensor, network: nn.Module, name: str) -> Tensor:
    """Return for each channel of the second dimension whether any entry of a mask is True.

    Each group of a grouped convolution has channels of its own.
    """
    groups = getattr(network.get_submodule(name.rpartition(".")[0]), "groups", 1)
    channels = mask.unflatten(0, (groups, -1)).any(1).flatten(0, 1)
    return channels.reshape(len(channels), -1).any(1)


def expand_units(network: nn.Module, name: str, units: Tensor) -> Tensor:
    """Expand a bool tensor (units,) to the shape of a weight, over the weights into each unit.

    Args:
        network: Network that has the weight.
        name: Name of the weight.
        units: One value per unit of the weight's layer.
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


# A LayerNorm's gains belong to entries of the last dimension, which need not be units.
_NORMALISATIONS = operators.BATCH_NORMS | operators.TRAINING_BATCH_NORMS | operators.GROUP_NORMS


def _normalised_weights(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Return for gains and shifts of normalisations the name of the weight whose output they scale.

    Gains and shifts that are applied to anything else than the outputs of one weight are left out.
    """
    recording = trace(network, inputs)
    parameters = dict(network.named_parameters())
    parameter_of_value = dict(recording.parameters)
    weight_of_value: dict[int, str] = {}
    # Names of the weights to whose outputs each gain or shift is applied; None stands for any other
    # use.
    uses: dict[str, set[str | None]] = {}
    for operation in recording.operations:
        values = operation.reads
        if operation.name in ("t", "alias", "detach") and values[0].number in parameter_of_value:
            parameter_of_value[operation.outputs[0].number] = (  # type: ignore[union-attr]
                parameter_of_value[values[0].number]
            )
            continue
        if operation.name in ("convolution", "mm", "addmm"):
            weight = operation.args[1] if operation.name == "convolution" else operation.args[-1]
            if weight.number in parameter_of_value:
                weight_of_value[operation.outputs[0].number] = (  # type: ignore[union-attr]
                    parameter_of_value[weight.number]
                )
        arguments = operation.bound() if operation.name in _NORMALISATIONS else {}
        affine = [
            arguments[key].number
            for key in ("weight", "bias")
            if isinstance(arguments.get(key), Value)
        ]
        for value in values:
            if (name := parameter_of_value.get(value.number)) in parameters:
                source = None
                if value.number in affine:
                    source = weight_of_value.get(arguments["input"].number)
                uses.setdefault(name, set()).add(source)
    return {
        name: next(iter(sources))  # type: ignore[misc]
        for name, sources in uses.items()
        if len(sources) == 1 and None not in sources and parameters[name].dim() == 1
    }
