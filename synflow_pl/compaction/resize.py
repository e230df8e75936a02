"""resize(): replace parameters and buffers of a network by tensors of other shapes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["resize"]


def resize(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    attributes: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> nn.Module:
    """Replace parameters and buffers of a network by tensors of other shapes.

    The attributes in which layers store their sizes (``in_channels``, ``num_features``, ...) are
    updated.

    Args:
        network: Network, which is changed in place. A tensor that several modules share stays
            shared.
        tensors: New tensors, by the names of ``named_parameters()`` and ``named_buffers()``. Other
            parameters and buffers stay as they are. A ``bias`` is added to a linear or convolution
            layer without one.
        attributes: Other attributes to set, by the name of the module and of the attribute, such as
            the number of heads of an attention.

    Returns:
        The network.

    Raises:
        ValueError: If the network has no parameter or buffer of a name, or a tensor has another
            number of dimensions.

    Example:
        >>> import torch
        >>> from synflow_pl.compaction import resize
        >>> layer = resize(torch.nn.Linear(4, 2), {"weight": torch.ones(2, 3)})
        >>> layer.in_features
        3
    """
    present = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    replaced: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        old = present.get(name)
        if old is None:
            layer = dict(network.named_modules()).get(name.removesuffix(".bias"))
            if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) or not name.endswith(
                ".bias"
            ):
                raise ValueError(f"{type(network).__name__} has no {name!r}")
            layer.bias = nn.Parameter(
                tensor.detach().to(layer.weight, copy=True),
                requires_grad=layer.weight.requires_grad,
            )
            continue
        if tensor.dim() != old.dim():
            raise ValueError(
                f"{name!r} is {tuple(tensor.shape)}, which cannot take the place of"
                f" {tuple(old.shape)}"
            )
        new = tensor.detach().to(old.device, old.dtype, copy=True)
        replaced[id(old)] = (
            nn.Parameter(new, requires_grad=old.requires_grad)
            if isinstance(old, nn.Parameter)
            else new
        )
    for module in network.modules():
        for tensors_of_module in (module._parameters, module._buffers):
            for name, old in tensors_of_module.items():
                if old is not None and id(old) in replaced:
                    tensors_of_module[name] = replaced[id(old)]  # type: ignore[assignment]
    # A second loop, since a weight may be computed from parameters of submodules.
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            _recompute_weight(module, hook)
        _update_sizes(module)
    for name, values in attributes.items():
        for attribute, value in values.items():
            setattr(network.get_submodule(name), attribute, value)
    return network


@torch.no_grad()
def _recompute_weight(module: nn.Module, hook: Any) -> None:
    """Recompute a weight that a forward pre-hook of torch stores as an attribute."""
    if isinstance(hook, BasePruningMethod):
        hook(module, ())
    elif isinstance(hook, WeightNorm):
        setattr(module, hook.name, hook.compute_weight(module))
    elif isinstance(hook, SpectralNorm):
        setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))


def _update_sizes(module: nn.Module) -> None:
    """Set the attributes in which a layer stores its sizes to the sizes of its weight."""
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second, *_ = module.weight.shape
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            if module.groups > 1:
                # Compaction removes whole groups.
                module.groups = module.groups * first // module.out_channels
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = next((x for x in (module.weight, module.running_mean) if x is not None), None)
        module.num_features = module.num_features if sized is None else len(sized)
