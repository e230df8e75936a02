"""Initialisation of the networks of this package, and reinitialisation of any network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

__all__ = ["kaiming", "reinitialise"]


def kaiming(
    network: nn.Module, kind: type[nn.Linear | nn.Conv2d], fan: Literal["fan_in", "fan_out"]
) -> None:
    """Initialise the layers of one class with Kaiming normal weights and zero biases.

    Weights are drawn from N(0, 2 / fan) (He et al. 2015, with the gain of ReLU).

    Args:
        network: Network, which is changed in place.
        kind: Class of the layers. Derived classes (such as a residual gain) are left out, since
            they have their own initialisation.
        fan: Whether fan is the number of inputs of a unit or of outputs of an input, each times
            the size of the kernel.
    """
    for module in network.modules():
        if type(module) is kind:
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def reinitialise(network: nn.Module) -> nn.Module:
    """Reinitialise every parameter and running statistic of a network, in place.

    The function calls ``reset_parameters`` of each module, submodules first, so that a network can
    overwrite the initialisation of its layers. It uses torch's global random state. The networks
    of this package become equal to a new network built with the same seed. Networks that initialise
    their weights in the constructor (as in torchvision and timm) get PyTorch's default
    initialisation of each layer instead; build a new one to have their own.

    Args:
        network: Module whose parameters all belong to modules with ``reset_parameters``.

    Returns:
        The network.

    Raises:
        ValueError: If a parameter belongs to a module without ``reset_parameters`` (a class token
            or a layer scale, for example). The network is not changed.
    """
    resets: list[Callable[[], None]] = []
    _collect(network, "", resets)
    for reset in resets:
        reset()
    return network


def _collect(module: nn.Module, prefix: str, resets: list[Callable[[], None]]) -> None:
    for name, child in module.named_children():
        _collect(child, f"{prefix}{name}.", resets)
    # torch's attention and transformers have a private method instead.
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is not None:
        resets.append(reset)
    elif own := [name for name, _ in module.named_parameters(recurse=False)]:
        raise ValueError(
            f"{prefix}{own[0]} cannot be drawn anew: {type(module).__name__} has no"
            " reset_parameters(); give it one, or build the network anew"
        )
