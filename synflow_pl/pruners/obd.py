"""Optimal brain damage (LeCun et al. 1990) at initialisation, with two estimates of the curvature.

Removing a weight w, and nothing else, changes the loss L to second order by -w dL/dw + 1/2 w^2 h
with the diagonal entry h of its Hessian. Optimal brain damage leaves out the first term, which is
zero in a trained network, and scores by the second,

    S(w) = 1/2 w^2 h        (the saliency of their recipe).

Navarrete et al. 2026, "What scalable second-order information knows for pruning at initialization",
use this score at initialisation and estimate h from

- the empirical Fisher information, h = mean over the examples n of (dl_n/dw)^2 with the loss l_n of
  one example (:class:`FisherOBD`);
- Hutchinson's estimator, h = mean over random vectors z of z * (Hz), where the entries of z are 1
  and -1 with equal probability (:class:`HutchinsonOBD`). The estimate is unbiased, and exact if H
  is diagonal. An entry may be negative, and then its weight is among the first to be removed.

They take scores in eval mode, after a warm-up in which only the running statistics of BatchNorm are
updated: at initialisation these are zeros and ones, so that eval mode would score a network
without normalisation. Their code updates them by passes over all training data, in train mode and
with the momentum of the layers. Here each statistic is its mean over the batches, with all other
modules in eval mode, and for the network that is scored: in several rounds it is computed anew in
each. The network's own statistics are not changed.

In a network that is already pruned a removed weight is not a parameter, so z is zero there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.batch_loss import BatchLoss
from synflow_pl.pruners.forward import gradients_of, mean_batch_statistics, nonempty, scored_losses

__all__ = ["FisherOBD", "HutchinsonOBD"]


class _OBD(Pruner):
    """Base class of pruners that score by 1/2 w^2 h with an estimate h of the curvature.

    Args:
        warmup: Whether BatchNorm normalises by the statistics of the batches instead of its running
            statistics.
    """

    needs_batches = True

    def __init__(self, warmup: bool = True) -> None:
        self.warmup = warmup

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        if state.train_mode:
            raise ValueError(
                f"train_mode: True, but {self.name} scores in eval mode, in which warmup=True gives"
                " BatchNorm the statistics of the batches; leave it out"
            )

    def score(self, state: PruningState) -> dict[str, Tensor]:
        statistics = mean_batch_statistics(state, state.weights) if self.warmup else {}
        return {
            name: curvature.mul_(state.weights[name]).mul_(state.weights[name]).div_(2)
            for name, curvature in self._curvature(state, statistics).items()
        }

    @abstractmethod
    def _curvature(
        self, state: PruningState, statistics: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the estimate h for each weight, by parameter name.

        Args:
            state: State of the pruning.
            statistics: Buffers of the normalisation layers, by name, that replace the network's.
        """


class FisherOBD(_OBD):
    """Keep the weights with the largest 1/2 w^2 h, with h from the empirical Fisher information.

    Each example takes a forward and a backward pass of its own. A batch that is no nested structure
    of tensors with one entry for each example cannot be split, and its gradient is squared as a
    whole; a note says so.

    Args:
        warmup: Whether BatchNorm normalises by the statistics of the batches instead of its running
            statistics.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import FisherOBD
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), FisherOBD(), density=0.25, batches=batches).kept
        8
    """

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        if any(_examples(state.loss, batch) is None for batch in state.batches):
            self.notes = (
                "squared gradients of whole batches, since these could not be split into examples",
            )

    def _curvature(
        self, state: PruningState, statistics: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        parts: list[Any] = []
        for index in nonempty(state):
            batch = state.batches[index]
            examples = _examples(state.loss, batch)
            parts += [batch] if examples is None else examples
        sizes = [state.loss.size(part) for part in parts]
        leaves = {name: weight.detach().requires_grad_() for name, weight in state.weights.items()}
        sums = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
        with scored_losses(replace(state, batches=parts), {**leaves, **statistics}) as losses:
            for loss, size in zip(losses(), sizes, strict=True):
                share = size / sum(sizes)  # by which the loss has been multiplied
                for name, gradient in zip(leaves, gradients_of(loss, leaves), strict=True):
                    sums[name].addcmul_(gradient, gradient, value=1 / share)
        return sums


class HutchinsonOBD(_OBD):
    """Keep the weights with the largest 1/2 w^2 h, with h from Hutchinson's estimator.

    Args:
        samples: Number of random vectors for each batch, at least 1.
        temperature: Positive number by which the network's outputs, the logits, are divided. The
            authors' code uses 200, as GraSP does.
        warmup: Whether BatchNorm normalises by the statistics of the batches instead of its running
            statistics.
        seed: Seed of the random vectors; ``None`` derives them from the global seed without
            advancing its generator.

    Raises:
        ValueError: If an option is impossible, naming its value.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import HutchinsonOBD
        >>> batches = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
        >>> prune(torch.nn.Linear(8, 4), HutchinsonOBD(), density=0.25, batches=batches).kept
        8
    """

    def __init__(
        self,
        samples: int = 10,
        temperature: float = 200.0,
        warmup: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(warmup)
        if samples < 1:
            raise ValueError(f"samples: {samples} must be at least 1; the authors' code uses 10")
        if not temperature > 0:
            raise ValueError(
                f"temperature: {temperature} must be positive; the authors' code uses 200"
            )
        self.samples = samples
        self.temperature = temperature
        self.seed = seed

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        self._generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )

    def _curvature(
        self, state: PruningState, statistics: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        leaves = {name: weight.detach().requires_grad_() for name, weight in state.weights.items()}
        sums = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
        with (
            sdpa_kernel(SDPBackend.MATH),  # fused attention kernels have no second derivative
            scored_losses(
                state, {**leaves, **statistics}, self.temperature, nonempty(state)
            ) as losses,
        ):
            for loss in losses():
                gradients = gradients_of(loss, leaves, create_graph=True)
                for _ in range(self.samples):
                    signs = {name: self._signs(mask) for name, mask in state.masks.items()}
                    along = torch.stack(
                        [
                            (gradient * signs[name]).sum()
                            for name, gradient in zip(leaves, gradients, strict=True)
                        ]
                    ).sum()
                    products = gradients_of(along, leaves, retain_graph=True)
                    for name, product in zip(leaves, products, strict=True):
                        sums[name].addcmul_(product, signs[name], value=1 / self.samples)
        return sums

    def _signs(self, mask: Tensor) -> Tensor:
        """Return random entries 1 and -1, and 0 for removed weights.

        They are drawn on the CPU so that the scores do not depend on the device.
        """
        drawn = torch.randint(0, 2, mask.shape, generator=self._generator).mul_(2).sub_(1)
        return drawn.to(mask.device) * mask


def _examples(loss: BatchLoss, batch: Any) -> list[Any] | None:
    """Return the batches of one example that a batch consists of.

    Args:
        loss: Loss of the batch, which gives the number of its examples.
        batch: Nested tuples, lists and dictionaries.

    Returns:
        A list of batches, or ``None`` if a part of the batch is no tensor with one entry for each
        example.
    """
    size = loss.size(batch)
    leaves, structure = tree_flatten(batch)
    if any(not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != size for leaf in leaves):
        return None
    return [
        tree_unflatten([leaf[index : index + 1] for leaf in leaves], structure)
        for index in range(size)
    ]
