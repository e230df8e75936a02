"""SynFlow written from the paper alone: slow, simple and the same for every test network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def positive_copy(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode with every parameter positive and every additive term zero.

    It is correct for ReLU networks with BatchNorm.
    """
    positive = copy.deepcopy(network).eval()
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
        for module in positive.modules():
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    return positive


def prunable_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of linear layers and convolutions, by name."""
    layers = (nn.Linear, nn.Conv2d)
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, layers)
    }


def first_scores(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the scores of the first round, by parameter name."""
    positive = positive_copy(network)
    weights = prunable_of(positive)
    ones = torch.ones(1, *shape, dtype=next(positive.parameters()).dtype)
    gradients = torch.autograd.grad(positive(ones).sum(), list(weights.values()))
    return {
        name: (weight * gradient).detach()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def prune(
    network: nn.Module, shape: tuple[int, ...], density: float, rounds: int
) -> dict[str, Tensor]:
    """Return masks by Tanaka et al. 2020, Algorithm 1, with a full sort in each round."""
    positive = positive_copy(network)
    weights = prunable_of(positive)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    for index in range(1, rounds + 1):
        scores = first_scores(positive, shape)
        flat = torch.cat([score.flatten() for score in scores.values()])
        keep = total - int((1 - density ** (index / rounds)) * total)
        order = torch.argsort(flat, descending=True, stable=True)
        kept = torch.zeros(total, dtype=torch.bool)
        kept[order[:keep]] = True
        parts = kept.split([weight.numel() for weight in weights.values()])
        with torch.no_grad():
            for (name, weight), part in zip(weights.items(), parts, strict=True):
                masks[name] = part.view_as(weight)
                weight.mul_(masks[name])
    return masks
