"""NTK-SAP: neural tangent kernel spectrum-aware pruning (Wang et al. 2023).

The paper is "NTK-SAP: improving neural network pruning by aligning training dynamics". The trace of
the neural tangent kernel measures how strongly the outputs respond to small changes of the weights.
It is estimated from one random change dw of scale epsilon, and the score of a weight is the
sensitivity of the estimate to its mask entry m,

    S(m) = | d/dm  || f(X; w * m) - f(X; (w + dw) * m) ||^2 |        (Equation 9),

where the square is averaged over the images X. Weights and images are Gaussian and drawn anew in
each round. All other parameters are initialised as in the authors' code: biases and shifts to 0,
gains to 1, weights that are not pruned Gaussian. The score therefore depends on the architecture
only, and not on the network's own parameters or any data. BatchNorm uses the statistics of the
drawn weights and images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl.prunable_parameters import layer_weights
from synflow_pl.pruners.base import Pruner, PruningState
from synflow_pl.pruners.forward import batch_statistics, gradients_of, stateless_forward

__all__ = ["NTKSAP"]

# Names of shifts other than "bias", and modules whose weight is a matrix even if one of its
# dimensions has size 1.
_SHIFTS = ("beta", "shift")
_TABLES = (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)


class NTKSAP(Pruner):
    """Keep the weights on which the trace of the neural tangent kernel depends the most.

    It needs no data, only the shape of the input.

    Args:
        images: Number of Gaussian images in each round, at least 2.
        epsilon: Scale of the random change of the weights, positive.
        seed: Seed of the random numbers; ``None`` derives them from the global seed without
            advancing its generator.

    Raises:
        ValueError: If an option is impossible, naming its value.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> from synflow_pl.pruners import NTKSAP
        >>> network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> prune(network, NTKSAP(images=4), density=0.25, rounds=3, input_shape=(8,)).kept
        10
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

    def prepare(self, state: PruningState) -> None:
        super().prepare(state)
        assert state.inputs is not None
        if len(state.inputs) != 1 or not state.inputs[0].is_floating_point():
            raise ValueError(
                "NTKSAP draws Gaussian images: the network must have one input, of floating-point"
                " numbers"
            )
        self._shape = state.inputs[0].shape[1:]
        # One generator for all rounds, on the CPU so that its values do not depend on the device.
        self._generator = torch.Generator().manual_seed(
            torch.initial_seed() if self.seed is None else self.seed
        )

    def score(self, state: PruningState) -> dict[str, Tensor]:
        weight = next(iter(state.weights.values()))
        images = self._like(weight.new_empty(self.images, *self._shape))
        masks = {
            name: mask.to(state.weights[name].dtype).requires_grad_()
            for name, mask in state.masks.items()
        }
        drawn = {name: self._kaiming(weight) for name, weight in state.weights.items()}
        changed = {
            name: weight + self.epsilon * self._like(weight) for name, weight in drawn.items()
        }
        others = self._others(state, weight)
        with stateless_forward(state) as forward:
            statistics = batch_statistics(state, forward, _masked(drawn, masks) | others, images)
            here = forward(_masked(drawn, masks) | others | statistics, images)
            there = forward(_masked(changed, masks) | others | statistics, images)
            trace = (here - there).square().flatten(1).sum(1).mean()
            gradients = gradients_of(trace, masks)
        return {name: gradient.abs() for name, gradient in zip(masks, gradients, strict=True)}

    def _kaiming(self, weight: Tensor) -> Tensor:
        """Return random values in the shape of a weight, from the Kaiming normal distribution."""
        return nn.init.kaiming_normal_(
            torch.empty(weight.shape, dtype=weight.dtype), generator=self._generator
        ).to(weight.device)

    def _others(self, state: PruningState, kind: Tensor) -> dict[str, Tensor]:
        """Return values for the parameters that are not pruned, by name.

        They depend on the architecture and the generator only.
        """
        network = state.network
        drawn = {id(parameter) for parameter in layer_weights(network).values()}
        owners = {
            id(p): (module, key)
            for module in network.modules()
            for key, p in module._parameters.items()
        }
        values = {}
        for name, parameter in network.named_parameters():
            if name in state.weights or not parameter.is_floating_point():
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
        """Return standard normal values in the shape of a tensor."""
        return torch.randn(weight.shape, dtype=weight.dtype, generator=self._generator).to(
            weight.device
        )


def _masked(weights: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight * masks[name] for name, weight in weights.items()}
