"""Base classes of pruners, and the state of a pruning that they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from synflow_pl.flow import Block, LinearNetwork
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners.batch_loss import BatchLoss, PairLoss
from synflow_pl.schedules import kept_weights

__all__ = [
    "Pruner",
    "PrunerWrapper",
    "PruningState",
    "Saliency",
    "flat_product",
    "multiplied_out",
    "varying_factor",
]


class Saliency(NamedTuple):
    """A score of the form ``weight * gradient`` that is not multiplied out.

    This is the synaptic saliency of Tanaka et al. 2020, Equation 1. Most weights are removed in the
    first of many rounds, and scores that can no longer be removed need not be multiplied.

    Example:
        >>> score = Saliency(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5]))
        >>> score.weight * score.gradient
        tensor([2.0000, 1.5000])
    """

    weight: Tensor
    gradient: Tensor


def flat_product(score: Tensor | Saliency) -> Tensor:
    """Return a score as a flat tensor that may be overwritten.

    A saliency is multiplied out, in place of its gradient where that is contiguous.
    """
    if isinstance(score, Saliency):
        return score.gradient.contiguous().view(-1).mul_(score.weight.reshape(-1))
    return score.contiguous().view(-1)


def multiplied_out(scores: Mapping[str, Tensor | Saliency]) -> dict[str, Tensor]:
    """Return scores by parameter name, saliencies multiplied out in place of their gradients."""
    return {
        name: flat_product(score).view(score.gradient.shape)
        if isinstance(score, Saliency)
        else score
        for name, score in scores.items()
    }


def varying_factor(score: Tensor | Saliency) -> Tensor:
    """Return the factor of a score that differs from round to round: its gradient, or all of it."""
    return score.gradient if isinstance(score, Saliency) else score


@dataclass
class PruningState:
    """State of a network while it is being pruned; created by :func:`synflow_pl.prune`.

    The network itself is not changed before the last round is finished. The rounds work on
    ``weights``, copies in float32 or higher precision in which every removed weight is zero (unless
    the pruner regrows weights). ``prune()`` sets the density, the batches and the options; a pruner
    sets ``compressible``, ``ranked_separately``, ``linear_network`` and ``scored_network`` in
    :meth:`Pruner.prepare` and may change ``weights`` there, and sets ``total_flow`` in
    :meth:`Pruner.score`; the groups in :mod:`synflow_pl.selection` update ``masks``, ``weights``
    and ``blocks`` after each round.

    Attributes:
        network: Network under study, dense.
        weights: Working copy of each prunable parameter, by name.
        masks: Bool masks, one per prunable parameter, True where the weight is kept.
        density: Density that the present round will leave, in (0, 1]; with ``rounds="auto"`` the
            density after the last round.
        scope: ``"global"`` or ``"local"``, as in :func:`synflow_pl.prune`.
        inputs: Example inputs of the network, or ``None`` where no pruner needs them.
        batches: Batches of the present round, for pruners that score on data, as ``loss`` takes
            them.
        compressible: Names of parameters that the pruner can score by their block of active units
            and inputs alone.
        blocks: Units and inputs to which parameters have been reduced, by name. Their entries in
            ``weights`` have the shape of the block.
        ranked_separately: Bool tensors in the weight's shape, by name, True for weights that are
            only ranked against each other, at the density of the whole network, since their scores
            cannot be compared with those of other weights. ``compressible`` has none of these
            names.
        loss: Loss of a batch, for pruners that score on data.
        train_mode: Whether pruners that score on data do so in train mode.
        linear_network: Positive linear network of ``network``, if the pruner built it; the
            connectivity check reuses it.
        scored_network: Positive linear network whose flow the pruner scores, or ``None`` if its
            scores are not shares of a flow (see :attr:`Pruner.scores_are_path_sums`).
        total_flow: Flow R of ``scored_network`` with the weights of the present round, a scalar on
            the scale of the scores; ``None`` without ``scored_network``.

    Example:
        >>> state = PruningState.from_network(nn.Linear(8, 4))
        >>> state.weights["weight"].shape, int(state.masks["weight"].sum())
        (torch.Size([4, 8]), 32)
    """

    network: nn.Module
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    density: Fraction = Fraction(1)
    scope: str = "global"
    inputs: tuple[Tensor, ...] | None = None
    batches: Sequence[Any] = ()
    compressible: Collection[str] = ()
    blocks: dict[str, Block] = field(default_factory=dict)
    ranked_separately: dict[str, Tensor] = field(default_factory=dict)
    loss: BatchLoss = field(default_factory=lambda: PairLoss(nn.functional.cross_entropy))
    train_mode: bool = False
    linear_network: LinearNetwork | None = None
    scored_network: LinearNetwork | None = None
    total_flow: Tensor | None = None

    @property
    def num_kept(self) -> int:
        """Number of weights that the present round will leave if all are ranked together."""
        return kept_weights(sum(mask.numel() for mask in self.masks.values()), self.density)

    @classmethod
    def from_network(
        cls,
        network: nn.Module,
        exclude: Iterable[str | type[nn.Module]] = (),
        include: Iterable[str | type[nn.Module]] = (),
        acting: Iterable[str] = (),
    ) -> PruningState:
        """Return the state of a network of which no weight has been removed.

        Args:
            network: Network under study.
            exclude: See :func:`synflow_pl.prunable_parameters.prunable`.
            include: See :func:`synflow_pl.prunable_parameters.prunable`.
            acting: See :func:`synflow_pl.prunable_parameters.prunable`.
        """
        parameters = prunable(network, exclude, include, acting)
        weights = {name: _working_copy(parameter) for name, parameter in parameters.items()}
        masks = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()
        }
        return cls(network, weights, masks)


def _working_copy(parameter: Tensor) -> Tensor:
    weight = parameter.detach().clone(memory_format=torch.contiguous_format)
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight


class Pruner(ABC):
    """Base class of pruners: a pruner gives each prunable weight a score, and the largest are kept.

    A subclass is the formula of a paper. It sets how many ``rounds`` it uses and what it needs, and
    implements :meth:`score`. Which weights are ranked together, how many are removed in each round
    and the selection itself belong to :func:`synflow_pl.prune`.

    Example:
        >>> import torch
        >>> from synflow_pl import prune
        >>> class SquaredMagnitude(Pruner):
        ...     def score(self, state):
        ...         return {name: weight.square() for name, weight in state.weights.items()}
        >>> prune(torch.nn.Linear(8, 4), SquaredMagnitude(), density=0.25).kept
        8
    """

    rounds: int = 1
    """Number of rounds in the paper, used for ``rounds=None``."""
    schedule: Literal["exponential", "linear", "cubic"] = "exponential"
    """Density after each round in the paper, used for ``schedule=None``."""
    end_fraction: float | None = None
    """Fraction of the training, in (0, 1], by which the masks are final, if rounds are spread over
    training or masks are updated in it; ``None`` if all rounds run at once.
    """
    needs_input: bool = False
    """True if the pruner reads ``state.inputs``."""
    needs_batches: bool = False
    """True if the pruner reads ``state.batches``."""
    regrows: bool = False
    """True if removed weights may come back. Then every weight is ranked in every round,
    ``state.weights`` stay dense, and ``state.masks`` are final after the last round only.
    """
    moves_masks: bool = False
    """True if :meth:`finish` moves kept weights to other places, which breaks up groups."""
    scores_are_path_sums: bool = False
    """True if some R is a sum of non-negative terms over the paths from input to output, and the
    score of each weight is the sum over the paths through it, counted as often as they pass it.
    Such a pruner sets ``state.scored_network`` and ``state.total_flow``; ``rounds="auto"`` requires
    it.
    """
    notes: tuple[str, ...] = ()
    """Remarks on how the network was scored, one sentence each, for reports; set by a pruning."""

    @property
    def name(self) -> str:
        """Name of the pruner in messages."""
        return type(self).__name__

    def prepare(self, state: PruningState) -> None:
        """Prepare for scoring; called once, before the first round.

        Args:
            state: State of the pruning.
        """
        self.notes = ()

    @abstractmethod
    def score(self, state: PruningState) -> Mapping[str, Tensor | Saliency]:
        """Return the scores of all prunable weights; the largest are kept.

        Scoring leaves the network as it was: weights, buffers, gradients, mode and random state.

        Args:
            state: State of the pruning.

        Returns:
            Finite scores by parameter name, in the shapes of ``state.weights``. The caller may
            overwrite the tensors. A parameter whose scores are all zero in the first round (a head
            that is initialised to zero) stays dense, since nothing is known about its weights, and
            is named in ``notes``.
        """

    def finish(self, state: PruningState) -> None:  # noqa: B027  most pruners have nothing to do
        """Finish the pruning; called once, after the last round, before weights are zeroed.

        Args:
            state: State of the pruning; its masks may be rearranged.
        """


class PrunerWrapper(Pruner):
    """Base class of pruners that delegate to another pruner and change or observe one step of it.

    Args:
        pruner: Pruner to delegate to.

    Example:
        >>> from synflow_pl.pruners import SynFlow
        >>> PrunerWrapper(SynFlow()).rounds
        100
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self.rounds, self.schedule, self.regrows = pruner.rounds, pruner.schedule, pruner.regrows
        self.needs_input, self.needs_batches = pruner.needs_input, pruner.needs_batches
        self.scores_are_path_sums = pruner.scores_are_path_sums
        self.moves_masks = self.moves_masks or pruner.moves_masks

    def prepare(self, state: PruningState) -> None:
        self.pruner.prepare(state)
        self.notes = self.pruner.notes

    def score(self, state: PruningState) -> Mapping[str, Tensor | Saliency]:
        return self.pruner.score(state)

    def finish(self, state: PruningState) -> None:
        self.pruner.finish(state)
