"""Update the masks of a network during its training, by drop and grow.

An update takes two hooks of one training batch. Before the optimiser's step the dense gradients are
there: averaged over accumulated batches and ranks, unscaled, and not yet masked or clipped. After
the batch the masks are replaced, so that what Lightning does in between sees the old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from synflow_pl.masks import Masks
from synflow_pl.pruners.drop_and_grow import DropAndGrow, GrowthState, drop_then_grow
from synflow_pl.training.distributed import Ranks
from synflow_pl.training.training_clock import End, find_end, progress

__all__ = ["MaskUpdates", "UpdateState", "start_from_zero"]


@dataclass
class UpdateState:
    """State of the updates of one network's masks, which is stored in checkpoints.

    Attributes:
        seed: Seed of random growth.
        last: Progress of the training at the last update, or when the updates began, as
            :func:`~synflow_pl.training.training_clock.progress` returns it.
        done: Number of completed updates.
        replaced: Number of weights that all updates together have grown from zero.
    """

    seed: int
    last: int
    done: int = 0
    replaced: int = 0


class MaskUpdates:
    """Updates of the masks of one network: when they are due, and what they change.

    Attributes:
        state: State of the updates, which checkpoints store; ``None`` if they have not begun.
        fraction: Fraction of the kept weights that the last update dropped in each layer.
    """

    def __init__(self) -> None:
        self.state: UpdateState | None = None
        self.fraction = 0.0
        self._end = End(None, None)
        self._now = 0
        self._gradients: dict[str, Tensor] = {}

    @property
    def collected(self) -> bool:
        """Return whether an update is prepared for the end of the present batch."""
        return bool(self._gradients)

    def begin(self, trainer: Trainer, method: DropAndGrow) -> None:
        """Begin now, with no completed update.

        Args:
            trainer: Trainer of the network.
            method: Method of dynamic sparse training.
        """
        seed = torch.initial_seed() if method.seed is None else method.seed
        self.state = UpdateState(seed=seed, last=progress(trainer))

    def plan(self, trainer: Trainer, method: DropAndGrow, at_epoch: int) -> None:
        """Compute the step from which on masks no longer change, when a training starts.

        Args:
            trainer: Trainer that is about to train.
            method: Method of dynamic sparse training.
            at_epoch: Number of epochs before the network is pruned.

        Raises:
            ValueError: If the training has no end, or the updates would end before they begin.
        """
        assert method.end_fraction is not None
        self._gradients = {}
        self._end = find_end(
            trainer, "dynamic sparse training", "t_end", method.end_fraction, at_epoch
        )
        if self.state is not None:  # a new training of the same network counts from zero
            self.state.last = min(self.state.last, progress(trainer))

    def collect(
        self,
        trainer: Trainer,
        method: DropAndGrow,
        optimizer: Optimizer,
        network: nn.Module,
        masks: Masks,
    ) -> None:
        """Store the magnitudes of the dense gradients if an update is due at this step.

        An update by gradients takes the place of the step, which then changes nothing, since the
        network's gradients are removed. A gradient that is not finite, such as one at which a
        gradient scaler skips the step, postpones the update to the next step.

        Args:
            trainer: Trainer of the network.
            method: Method of dynamic sparse training.
            optimizer: Optimiser that is about to step.
            network: Network that is trained.
            masks: Masks of the network.
        """
        if self.state is None:
            return
        automatic = trainer.lightning_module.automatic_optimization
        now = progress(trainer) + automatic  # Lightning counts an automatic step after it is made
        multiple, position = now // method.delta_t * method.delta_t, self._position(trainer, now)
        if multiple <= self.state.last or position >= 1:
            return
        ours = {id(parameter) for parameter in network.parameters()}
        stepped = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in ours and parameter.grad is not None
        ]
        if not all(bool(parameter.grad.isfinite().all()) for parameter in stepped):
            return
        self._now, self.fraction = now, method.fraction_at(position)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        for parameter in stepped:
            if (name := names[id(parameter)]) in masks.weights:
                self._gradients[name] = (
                    parameter.grad.abs()
                    if method.grows_by_gradient
                    else parameter.grad.new_empty(0)
                )
        if method.grows_by_gradient and stepped:
            _record_scale(trainer, optimizer)
            for parameter in stepped:
                parameter.grad = None

    def choose(
        self, method: DropAndGrow, ranks: Ranks, network: nn.Module, masks: Masks
    ) -> tuple[Masks, dict[str, Tensor]]:
        """Return the masks after the update that was collected, on every rank those of rank 0.

        Masks of parameters that had no gradient in this step, such as frozen ones, stay.

        Args:
            method: Method of dynamic sparse training.
            ranks: Ranks of the training.
            network: Network that is trained.
            masks: Masks of the network.

        Returns:
            Masks after the update, and bool tensors that are True where a weight starts from zero,
            by parameter name.
        """
        assert self.state is not None
        state, gradients = self.state, self._gradients
        self._gradients = {}

        def choose() -> tuple[dict[str, object], dict[str, Tensor]]:
            weights = {name: network.get_parameter(name).detach() for name in gradients}
            before = {name: masks[name].to(weight.device) for name, weight in weights.items()}
            dense = gradients if method.grows_by_gradient else {}
            generator = _generator(state.seed, state.done)
            growth = method.growth_scores(GrowthState(weights, before, generator, dense))
            after, new = dict(masks), {}
            for name, weight in weights.items():
                scores = growth[name].to(weight.device)
                after[name], grown = drop_then_grow(
                    weight, before[name], scores, self.fraction, method.by_sign
                )
                new[name] = (grown if method.resets_regrown else grown & ~before[name]).cpu()
            return Masks(after, masks.followers).state_dict(), new

        chosen, new = ranks.run_on_rank_zero(choose)
        state.last, state.done = self._now, state.done + 1
        state.replaced += sum(int(grown.count_nonzero()) for grown in new.values())
        return Masks.from_state_dict(chosen), new

    def _position(self, trainer: Trainer, now: int) -> float:
        """Return a progress as a fraction of that from which on masks do not change."""
        clocks = ((now, self._end.progress), (trainer.global_step, self._end.steps))
        return max(count / last for count, last in clocks if last is not None)


@torch.no_grad()
def start_from_zero(
    optimizers: Iterable[Optimizer], network: nn.Module, new: Mapping[str, Tensor]
) -> None:
    """Set grown weights to zero, and the optimisers' state of them: momentum, second moments.

    Args:
        optimizers: Optimisers of the network.
        network: Network that is trained.
        new: Bool tensors that are True where a weight starts from zero, by parameter name.
    """
    for name, grown in new.items():
        parameter = network.get_parameter(name)
        states = [optimizer.state.get(parameter, {}) for optimizer in optimizers]
        for value in [parameter, *(value for state in states for value in state.values())]:
            if isinstance(value, Tensor) and value.shape == grown.shape:
                value.masked_fill_(grown.to(value.device), 0)


def _generator(seed: int, done: int) -> torch.Generator:
    """Return a generator of one update, so that a resumed training draws the same numbers."""
    digest = hashlib.sha256(f"{seed} {done}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _record_scale(trainer: Trainer, optimizer: Optimizer) -> None:
    """Let a gradient scaler check the gradients of a fused optimiser before they are removed.

    Lightning leaves that to the optimiser's step, and the scaler cannot update without the check.
    """
    plugin = trainer.precision_plugin
    scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)
