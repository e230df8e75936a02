"""Paths: whether anything still leads from the input to the output of a pruned network."""

from __future__ import annotations

from torch import Tensor, nn

from synflow_pl.flow.linearise import linearise
from synflow_pl.flow.skeleton import Skeleton
from synflow_pl.masks import Masks

__all__ = ["path_left"]


def path_left(network: nn.Module, masks: Masks, inputs: tuple[Tensor, ...], skeleton: Skeleton | None = None) -> bool:
    """Whether a path of living weights is left from input to output: a network without one is dead, whatever its layers still hold.

    Decided on the structure alone: masks stand in for weights, ones for gains; gates are open, and attention connects any two tokens
    that it does not mask out. At the inputs' real size, padding carrying nothing.

    Args:
        network: the network under study.
        masks: its masks.
        inputs: as :func:`synflow_pl.flow.example_of` gives them.
        skeleton: the network's skeleton, where one is at hand.
    """
    skeleton = linearise(network, inputs) if skeleton is None else skeleton
    structure = {name: masks[name].to(inputs[0].device, skeleton.dtype) for name in masks if name in skeleton.weights}
    return bool(skeleton.flow(structure, gains=False) > 0)
