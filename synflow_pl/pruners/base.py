"""Pruner: what gives scores, and Subject: what it gives them to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from synflow_pl.flow import Block, LinearNetwork
from synflow_pl.masks import prunable
from synflow_pl.schedules import kept_weights

__all__ = ["Pruner", "PruningState", "Saliency"]


class Saliency(NamedTuple):
    """A score of the form ``weight * gradient`` (Tanaka et al. 2020, Equation 1), not multiplied
    out.

    Most weights are removed in the first of many rounds; what can no longer be cut need not be
    multiplied.
    """

    weight: Tensor
    gradient: Tensor


@dataclass
class PruningState:
    """A network while it is being pruned.

    The network itself stays untouched until the last round is over: rounds work on ``weights``,
    copies in float32 or better in which every removed weight is zero already (unless the pruner
    regrows). They are the pruner's to work with, as long as removed weights stay zero.

    Attributes:
        network: the network under study, dense.
        weights: working copy of each prunable parameter, by name.
        masks: bool, one per prunable parameter, True where the weight lives.
        compressible: names that the pruner can score by their living block alone; it says so in
            :meth:`Pruner.prepare`.
        blocks: those of them that have been cut down to it. Their entry in ``weights`` has the
            block's shape.
        ranked_separately: bool, by name, True where a weight does not compete with those of other
            parameters but only with its like in its own, at the density of the whole; what the
            pruner cannot compare says so in :meth:`Pruner.prepare`. ``compressible`` names none.
        density: the density that the coming cut will leave, in (0, 1].
        scope: who competes, "global" or "local".
        inputs: an example of the network's inputs, or ``None`` where no pruner asked for it.
        batches: (images (N, C, H, W), labels (N,)) pairs of the present round, for data-driven
            pruners.
        loss: (logits, labels) to a scalar, the mean over a batch.
        train_mode: whether data-driven pruners score in train mode.
        skeleton: the network's skeleton, where the pruner made one; whether a path is left is seen
            in it.
    """

    network: nn.Module
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    density: Fraction = Fraction(1)
    scope: str = "global"
    inputs: tuple[Tensor, ...] | None = None
    batches: Sequence[tuple[Tensor, Tensor]] = ()
    compressible: Collection[str] = ()
    blocks: dict[str, Block] = field(default_factory=dict)
    ranked_separately: dict[str, Tensor] = field(default_factory=dict)
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    train_mode: bool = False
    skeleton: LinearNetwork | None = None

    @property
    def kept(self) -> int:
        """How many weights in all the coming cut will leave, if all compete with each other."""
        return kept_weights(sum(mask.numel() for mask in self.masks.values()), self.density)

    @classmethod
    def of(cls, network: nn.Module, exclude: Iterable[str] = ()) -> PruningState:
        """A subject of which nothing has been removed yet."""
        parameters = prunable(network, exclude)
        weights = {name: _working_copy(parameter) for name, parameter in parameters.items()}
        masks = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()
        }
        return cls(network, weights, masks)


def _working_copy(parameter: Tensor) -> Tensor:
    weight = parameter.detach().clone(memory_format=torch.contiguous_format)
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


class Pruner(ABC):
    """Gives each prunable weight a score; the larger survives. Who competes, how much goes in each
    round and the cut itself are not its concern (:func:`synflow_pl.prune`).

    A subclass is the formula of a paper: it says how many ``rounds`` it wants, what it ``needs``,
        and scores.
    """

    rounds: int = 1
    """Rounds that the paper uses; what ``rounds=None`` means."""
    schedule: Literal["exponential", "linear", "cubic"] = "exponential"
    """Density after each round in the paper; what ``schedule=None`` means."""
    end_fraction: float | None = None
    """If rounds are spread over a training: the fraction of it, in (0, 1], by which the last one is
    over. Else all are at once.
    """
    needs_input: bool = False
    """Whether it asks for ``subject.inputs``."""
    needs_batches: bool = False
    """Whether it asks for ``subject.batches``."""
    regrows: bool = False
    """Whether a removed weight may come back. Then every weight competes in every round,
    ``subject.weights`` stay dense, and ``subject.masks`` say what is left of them at present; zeros
    become final after the last round.
    """
    notes: tuple[str, ...] = ()
    """What a report should say about how the network was scored, one sentence each; known once it
    has been pruned.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def prepare(self, subject: PruningState) -> None:
        """Called once, before the first round; what is worked out here serves all rounds."""
        self.notes = ()

    @abstractmethod
    def score(self, subject: PruningState) -> Mapping[str, Tensor | Saliency]:
        """Scores by parameter name, in the shapes of ``subject.weights``, finite; the larger
        survives.

        The tensors may be overwritten afterwards. The network is left exactly as it was found:
        weights, buffers, gradients, mode and random state. A parameter whose scores are zero
        throughout while nothing has been removed stays dense, since nothing is known about it (a
        head that starts at zero); ``notes`` will name it.
        """

    def finish(self, subject: PruningState) -> None:  # noqa: B027  nearly every pruner is done when the last cut is
        """Called once, after the last round, before anything in the network is zeroed. It may
        rearrange ``subject.masks``.
        """
