"""Initialisation of the networks that follow OpenLTH: Kaiming normal by fan-in with gain sqrt(2) (He et al. 2015), biases zero."""

from __future__ import annotations

from torch import nn

__all__ = ["kaiming"]


def kaiming(network: nn.Module) -> None:
    """Draw weights of linear and convolution layers from N(0, 2 / fan_in), zero their biases; normalisations are left at 1 and 0."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
