"""Initialisation: what the networks draw their weights from, and how any network draws them
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

__all__ = ["kaiming", "reinitialise"]


def kaiming(
    network: nn.Module, kind: type[nn.Linear | nn.Conv2d], fan: Literal["fan_in", "fan_out"]
) -> None:
    """Draw the weights of one kind of layer from N(0, 2 / fan), Kaiming normal with ReLU's gain (He
    et al. 2015); zero its biases.

    Args:
        network: whose layers are drawn, in place.
        kind: of exactly this class; a layer of a class derived from it (a residual gain) has a
            start of its own.
        fan: inputs of a unit, or outputs of an input; a kernel counts with each of its positions.
    """
    for module in network.modules():
        if type(module) is kind:
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def reinitialise(network: nn.Module) -> nn.Module:
    """Draw every parameter anew, in place: each module's ``reset_parameters``, the inner ones
    first, so that a network has the last word over its layers. Statistics of normalisations start
    anew as well. Follows torch's global seed.

    Our networks become what a new one would be with the same seed. One that draws its weights in
    its constructor (torchvision's, timm's) gets PyTorch's own start for each layer; build it anew
    to have its own.

    Args:
        network: any module whose parameters all belong to modules that can draw them.

    Returns:
        The network.

    Raises:
        ValueError: naming a parameter that no module can draw (a class token, a layer scale);
            nothing is changed then.
    """
    resets: list[Callable[[], None]] = []
    _collect(network, "", resets)
    for reset in resets:
        reset()
    return network


def _collect(module: nn.Module, prefix: str, resets: list[Callable[[], None]]) -> None:
    for name, child in module.named_children():
        _collect(child, f"{prefix}{name}.", resets)
    # Attention and transformers of torch have it under a private name.
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is not None:
        resets.append(reset)
    elif own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise ValueError(
            f"{prefix}{own[0]} cannot be drawn anew: {type(module).__name__} has no reset_parameters(); give it one, or build the"
            " network anew"
        )
