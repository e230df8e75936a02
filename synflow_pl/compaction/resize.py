"""Resize: give a network's layers other sizes, by giving them parameters of other shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["resize"]


def resize(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Replace parameters and buffers, and let each layer's own account of its size
    (``in_channels``, ``num_features``, ...) follow.

    Args:
        network: changed in place. A tensor that several modules share stays shared.
        tensors: by the names of ``named_parameters()`` and ``named_buffers()``; what is not among
            them stays. A ``bias`` that its layer was built without is added.

    Returns:
        The network.

    Raises:
        ValueError: for a name that the network has no place for, or a shape that the layer cannot
            have.
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
                f"{name!r} is {tuple(tensor.shape)}, which cannot take the place of {tuple(old.shape)}"
            )
        new = tensor.detach().to(old.device, old.dtype, copy=True)
        replaced[id(old)] = (
            nn.Parameter(new, requires_grad=old.requires_grad)
            if isinstance(old, nn.Parameter)
            else new
        )
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, there in held.items():
                if there is not None and id(there) in replaced:
                    held[name] = replaced[id(there)]  # type: ignore[assignment]
    for module in network.modules():  # a weight may be computed from parameters of modules below
        for hook in module._forward_pre_hooks.values():
            _compute(module, hook)
        _account(module)
    return network


@torch.no_grad()
def _compute(module: nn.Module, hook: Any) -> None:
    """Weights that torch computes before each forward and keeps as attributes get their new
    shape.
    """
    if isinstance(hook, BasePruningMethod):
        hook(module, ())
    elif isinstance(hook, WeightNorm):
        setattr(module, hook.name, hook.compute_weight(module))
    elif isinstance(hook, SpectralNorm):
        setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))


def _account(module: nn.Module) -> None:
    """What a layer says of its own size, read off its weight."""
    if isinstance(module, nn.modules.conv._ConvNd):
        first, second, *_ = module.weight.shape
        if module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            if module.groups > 1:
                module.groups = (
                    module.groups * first // module.out_channels
                )  # whole groups go, or none
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = next((x for x in (module.weight, module.running_mean) if x is not None), None)
        module.num_features = module.num_features if sized is None else len(sized)
