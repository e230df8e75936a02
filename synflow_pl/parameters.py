"""Networks that cannot be pruned, and parameters that no mask covers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["NORMALISATIONS", "LeftOut", "check_network", "left_out", "left_out_note"]

# A note names at most this many layers.
_MAX_NAMES = 20
# Layers whose parameters are never pruned and are only counted in a note.
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_network(network: object) -> None:
    """Raise an error if a network cannot be pruned or diagnosed as it is.

    Args:
        network: Object that was given as a network.

    Raises:
        TypeError: If it is not a module, or a part of it is TorchScript or wrapped for parallel
            training.
        ValueError: If a parameter has no usable values: it is lazy, on the meta device, created in
            inference mode, or sparse.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    for name, module in network.named_modules():
        where = f"the module {name!r}" if name else "the network"
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{where} is TorchScript ({kind}), whose operations cannot be recorded; prune the"
                " module that it was made from and script that afterwards"
            )
        if (
            isinstance(module, (DataParallel, DistributedDataParallel))
            or kind == "FullyShardedDataParallel"
        ):
            raise TypeError(
                f"{where} is wrapped in {kind}; prune the module inside it (its .module) and wrap"
                " that afterwards"
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"{name!r} is lazy and has no shape yet; run the network once on a batch, then"
                " prune it"
            )
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values; move the network by to_empty()"
                " and initialise it first"
            )
        if tensor.is_inference():
            raise ValueError(
                f"{name!r} was made in inference mode and cannot be changed; build the network"
                " outside torch.inference_mode()"
            )
        if tensor.layout not in (torch.strided, torch._mkldnn):  # type: ignore[attr-defined]
            raise ValueError(
                f"{name!r} has the layout {tensor.layout}; a mask needs a dense tensor, so convert"
                " it by to_dense() first"
            )


@dataclass(frozen=True)
class LeftOut:
    """Parameters of one module that no mask covers.

    Attributes:
        module: Name of the module, "" for the network itself.
        kind: Name of its class.
        size: Number of entries of the parameters.
        plain: Whether they are biases, gains or shifts only.
    """

    module: str
    kind: str
    size: int
    plain: bool


def left_out(network: nn.Module, covered: Collection[str]) -> list[LeftOut]:
    """List the parameters that no mask covers, by the module that owns them.

    The modules are in the network's order. The parameters of a parametrisation belong to the module
    whose weight they compute.

    Args:
        network: Network under study.
        covered: Names of the parameters that have a mask.
    """
    present = dict(network.named_parameters(remove_duplicate=False))
    seen = {id(present[name]) for name in covered if name in present}
    found: dict[str, LeftOut] = {}
    for name, parameter in network.named_parameters():
        if id(parameter) in seen:
            continue
        owner = name.rpartition(".")[0]
        owner = (
            owner.partition("parametrizations.")[0].rstrip(".")
            if "parametrizations" in owner.split(".")
            else owner
        )
        module = network.get_submodule(owner)
        before = found.get(owner, LeftOut(owner, _kind(module), 0, True))
        plain = isinstance(module, NORMALISATIONS) or _is_vector(name, parameter)
        found[owner] = LeftOut(
            owner, before.kind, before.size + parameter.numel(), before.plain and plain
        )
    return list(found.values())


def left_out_note(
    network: nn.Module, parts: Collection[LeftOut], *, all_of_them: bool = True
) -> str | None:
    """Return a sentence on how many parameters take no part, or ``None`` if there are none.

    Args:
        network: Network under study.
        parts: Result of :func:`left_out`.
        all_of_them: Whether to return a sentence where only biases, gains and shifts are left out.
    """
    named = [part for part in parts if not part.plain]
    plain = sum(part.size for part in parts if part.plain)
    if not parts or not (named or all_of_them):
        return None
    total = sum(parameter.numel() for parameter in network.parameters())
    listed = [
        f"{part.module or type(network).__name__} ({part.kind}, {part.size:,})"
        for part in named[:_MAX_NAMES]
    ]
    if len(named) > _MAX_NAMES:
        listed.append(
            f"{len(named) - _MAX_NAMES} more ({sum(part.size for part in named[_MAX_NAMES:]):,})"
        )
    if plain:
        listed.append(f"biases, gains and shifts ({plain:,})")
    return (
        f"{sum(part.size for part in parts):,} of {total:,} parameters take no part and stay dense:"
        f" {', '.join(listed)}"
    )


def _kind(module: nn.Module) -> str:
    """Return the name of a module's class, with a remark if its weight is computed."""
    if nn.utils.parametrize.is_parametrized(module):
        return f"{type(module).__mro__[1].__name__}, parametrised"
    computed = isinstance(getattr(module, "weight", None), Tensor) and "weight" not in (
        *module._parameters,
        *module._buffers,
    )
    return type(module).__name__ + (", weight computed" if computed else "")


def _is_vector(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a bias, a gain or a token rather than a layer's weight."""
    if parameter.dim() < 2:
        return True
    own = name.rpartition(".")[2]
    return parameter.numel() == max(parameter.shape) and not any(
        word in own for word in ("weight", "kernel", "original")
    )
