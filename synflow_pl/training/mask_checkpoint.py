"""Store the state of a pruned network in a checkpoint, restore it, and check it before resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytorch_lightning import Trainer

from synflow_pl.masks import Masks
from synflow_pl.training.averaged_models import refuse_mid_epoch
from synflow_pl.training.checkpoints import KEY, attribute_of, states
from synflow_pl.training.fit_checks import refuse_shards
from synflow_pl.training.gradual_pruning import Gradual
from synflow_pl.training.mask_updates import UpdateState

__all__ = ["NetworkState", "check_resumable"]


@dataclass(frozen=True)
class NetworkState:
    """State of one pruned network in a checkpoint.

    Attributes:
        masks: Masks of the network; ``None`` if it is not pruned.
        gradual: State of a gradual pruning; ``None`` if there is none.
        compact: Whether a smaller network is trained.
        updates: State of the updates of dynamic sparse training; ``None`` if there are none.
    """

    masks: Masks | None
    gradual: Gradual | None
    compact: bool
    updates: UpdateState | None = None

    def store(self, checkpoint: dict[str, Any], prefix: str, *, alone: bool) -> None:
        """Add the state to a checkpoint, in place, under a key that does not depend on the class.

        Args:
            checkpoint: Content of the checkpoint.
            prefix: Prefix of the network's weights in the checkpoint.
            alone: Whether this is the only network that is pruned.
        """
        state: dict[str, Any] = {"network": prefix, "compact": self.compact}
        if self.masks is not None:
            state["masks"] = self.masks.state_dict()
        if self.gradual is not None:
            state["gradual"] = asdict(self.gradual)
        if self.updates is not None:
            state["updates"] = asdict(self.updates)
        if alone:
            checkpoint[KEY] = state
        else:
            checkpoint.setdefault(KEY, {"networks": {}})["networks"][prefix] = state

    @classmethod
    def load(cls, checkpoint: Mapping[str, Any], prefix: str) -> NetworkState:
        """Return the state of a network in a checkpoint, without masks if it has none.

        Args:
            checkpoint: Content of the checkpoint.
            prefix: Prefix of the network's weights, with or without the part of ``torch.compile``.
        """
        state = _by_attribute(checkpoint).get(attribute_of(prefix), {})
        masks, gradual, updates = (state.get(key) for key in ("masks", "gradual", "updates"))
        return cls(
            masks=Masks.from_state_dict(masks) if masks is not None else None,
            gradual=Gradual(**gradual) if gradual is not None else None,
            compact=state.get("compact", False),
            updates=UpdateState(**updates) if updates is not None else None,
        )


def check_resumable(
    trainer: Trainer,
    checkpoint: Mapping[str, Any],
    prefix: str,
    prefixes: Sequence[str],
    *,
    compact: bool,
) -> None:
    """Refuse a checkpoint from which a training cannot be resumed.

    Args:
        trainer: Trainer that is about to resume.
        checkpoint: Content of the checkpoint.
        prefix: Prefix of the weights of the network that is checked.
        prefixes: Prefixes of the weights of all networks that callbacks prune.
        compact: Whether a smaller network will be trained.

    Raises:
        ValueError: If no callback prunes a network that has masks in the checkpoint, if averaging
            had begun in mid-epoch, if the checkpoint was trained with another value of ``compact``,
            or if the strategy shards parameters.
    """
    stored = _by_attribute(checkpoint)
    _refuse_unclaimed(trainer, [attribute_of(other) for other in prefixes], stored)
    refuse_mid_epoch(trainer, checkpoint)
    state = stored.get(attribute_of(prefix), {})
    if state.get("masks") is None:
        return
    if state.get("compact", False) != compact:
        raise ValueError(
            f"compact: the checkpoint was trained with compact {str(not compact).lower()},"
            " and its optimiser's state has that size; resume with the same value"
        )
    refuse_shards(trainer)


def _by_attribute(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {attribute_of(prefix): state for prefix, state in states(checkpoint).items()}


def _refuse_unclaimed(
    trainer: Trainer, present: Sequence[str], stored: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse a checkpoint with masks of a network that no callback prunes.

    That network would be trained dense.

    Raises:
        ValueError: If there is such a network, naming it.
    """
    for name, state in stored.items():
        if state.get("masks") is not None and name not in present:
            names = ", ".join(repr(other) for other in present)
            raise ValueError(
                f"the checkpoint {str(trainer.ckpt_path)!r} holds the masks of {name!r}, which no"
                f" PruneAtInit of this Trainer prunes (they prune {names}); add one with"
                f" network={name!r}, or start anew without ckpt_path"
            )
