"""NTK-SAP: neural tangent kernel spectrum-aware pruning (Wang et al. 2023, "NTK-SAP: improving
neural network pruning by aligning training dynamics").

The trace of the neural tangent kernel says how strongly outputs answer to a small change of the
weights. Its estimate from one random change dw of scale epsilon, and what a mask entry m has to do
with it, is

    S(m) = | d/dm  || f(X; w * m) - f(X; (w + dw) * m) ||^2 |,

the square averaged over the images X. Weights and images are Gaussian, drawn anew in each round,
and all other parameters start as in the authors' code: biases and shifts at 0, gains at 1, weights
that are not pruned Gaussian too. So neither the network's own parameters nor any data count, only
its architecture. BatchNorm runs on the statistics that the drawn weights and images give it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.masks import prunable
from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import batch_statistics, gradients_of, stateless_forward

__all__ = ["NTKSAP"]

# Names of shifts that are not called a bias, and modules whose weight is a matrix whatever its
# shape.
_SHIFTS = ("beta", "shift")
_TABLES = (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)


class NTKSAP(Pruner):
    """Keeps the weights on whose presence the trace of the neural tangent kernel depends the most;
    needs no data.

    Args:
        images: Gaussian images in each round, at least 2.
        epsilon: scale of the random change of the weights, positive.
        seed: of what is drawn; ``None`` follows the global seed without drawing from it.

    Raises:
        ValueError: for an impossible option, naming its value.
    """

    rounds = 100
    needs_input = True

    def __init__(self, images: int = 100, epsilon: float = 0.01, seed: int | None = None) -> None:
        if images < 2:
            raise ValueError(f"images: {images} must be at least 2, or BatchNorm has no statistics")
        if not epsilon > 0:
            raise ValueError(f"epsilon: {epsilon} must be positive; the paper's code uses 0.01")
        self.images = images
        self.epsilon = epsilon
        self.seed = seed

    def prepare(self, subject: PruningState) -> None:
        super().prepare(subject)
        assert subject.inputs is not None
        if len(subject.inputs) != 1 or not subject.inputs[0].is_floating_point():
            raise ValueError(
                "NTKSAP draws Gaussian images: the network must have one input, of floating-point numbers"
            )
        self._shape = subject.inputs[0].shape[1:]
        # One generator for all rounds, on the CPU, so that what is drawn does not depend on the
        # device.
        self._generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )

    def score(self, subject: PruningState) -> dict[str, Tensor]:
        weight = next(iter(subject.weights.values()))
        images = self._like(weight.new_empty(self.images, *self._shape))
        masks = {
            name: mask.to(subject.weights[name].dtype).requires_grad_()
            for name, mask in subject.masks.items()
        }
        drawn = {name: self._kaiming(weight) for name, weight in subject.weights.items()}
        changed = {
            name: weight + self.epsilon * self._like(weight) for name, weight in drawn.items()
        }
        others = self._others(subject, weight)
        with stateless_forward(subject) as forward:
            statistics = batch_statistics(subject, forward, _masked(drawn, masks) | others, images)
            here = forward(_masked(drawn, masks) | others | statistics, images)
            there = forward(_masked(changed, masks) | others | statistics, images)
            trace = (here - there).square().flatten(1).sum(1).mean()
            gradients = gradients_of(trace, masks)
        return {name: gradient.abs() for name, gradient in zip(masks, gradients, strict=True)}

    def _kaiming(self, weight: Tensor) -> Tensor:
        return nn.init.kaiming_normal_(
            torch.empty(weight.shape, dtype=weight.dtype), generator=self._generator
        ).to(weight.device)

    def _others(self, subject: PruningState, kind: Tensor) -> dict[str, Tensor]:
        """Return values, by name, for the parameters that are not pruned; they depend on the
        architecture and on the generator only.
        """
        network = subject.network
        drawn = {id(parameter) for parameter in prunable(network).values()}
        owners = {
            id(p): (module, key)
            for module in network.modules()
            for key, p in module._parameters.items()
        }
        values = {}
        for name, parameter in network.named_parameters():
            if name in subject.weights or not parameter.is_floating_point():
                continue
            module, key = owners[id(parameter)]
            like = torch.empty(parameter.shape, dtype=kind.dtype, device=kind.device)
            if "bias" in key or key in _SHIFTS:
                values[name] = like.zero_()
            elif (
                id(parameter) in drawn
                or isinstance(module, _TABLES)
                or sum(size > 1 for size in parameter.shape) > 1
            ):
                values[name] = self._kaiming(like)
            else:
                values[name] = like.fill_(module.init if isinstance(module, nn.PReLU) else 1.0)
        return values

    def _like(self, weight: Tensor) -> Tensor:
        return torch.randn(weight.shape, dtype=weight.dtype, generator=self._generator).to(
            weight.device
        )


def _masked(weights: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight * masks[name] for name, weight in weights.items()}
