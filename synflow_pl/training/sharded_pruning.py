"""Prune a network that is whole on no rank, shard by shard.

This is possible for scores that depend on one layer alone. Masks are those that one process would
choose for the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from synflow_pl.masks import Masks
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners import LAMP, Magnitude, Pruner, Random
from synflow_pl.pruners.base import PruningState
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.schedules import as_density, kept_weights
from synflow_pl.training.sharded_masks import local, own_part, sharded_like
from synflow_pl.training.sharded_selection import keep_largest
from synflow_pl.training.state_dict_matching import canonical

__all__ = ["prune_shards"]


def prune_shards(network: nn.Module, pruner: Pruner, options: PruningOptions) -> Masks:
    """Return the masks of a network with sharded parameters; every rank has to call this function.

    At most one layer is whole on a rank at a time, and only with LAMP and Random.

    Args:
        network: Network with sharded parameters, which is not changed.
        pruner: Magnitude, Random or LAMP.
        options: Options of the pruning.

    Returns:
        Masks that are sharded as the parameters are.

    Raises:
        ValueError: If another pruner or an option needs the whole network, or a layer's scores are
            all zero.
        FloatingPointError: If a score is not finite, naming the parameter.
    """
    _check(pruner, options)
    weights = prunable(network, options.exclude, options.include)
    state = PruningState(network, weights={}, masks={}, scope=options.scope)
    pruner.prepare(state)
    total = sum(weight.numel() for weight in weights.values())
    if options.num_kept is not None and options.num_kept > total:
        raise ValueError(
            f"num_kept: {options.num_kept} is more than the {total} prunable weights there are"
        )
    density = as_density(options.density) if options.density is not None else None
    num_kept = kept_weights(total, density) if density is not None else options.num_kept
    assert num_kept is not None
    scores = dict(_scores(pruner, weights, num_kept))
    _check_scores(scores, weights)
    if options.scope == "local" and density is not None:
        masks: dict[str, Tensor] = {}
        for name, weight in weights.items():
            keep = kept_weights(weight.numel(), density)
            masks |= keep_largest({name: scores[name]}, {name: weight}, keep)
    else:
        masks = keep_largest(scores, weights, num_kept)
    return Masks(
        {canonical(name): sharded_like(weights[name], mask) for name, mask in masks.items()}
    )


def _check(pruner: Pruner, options: PruningOptions) -> None:
    name = type(pruner).__name__
    problem = None
    if type(pruner) not in (Magnitude, Random, LAMP):
        problem = f"{name} scores the network as a whole (Magnitude, Random and LAMP do not)"
    elif options.structured or options.density is options.num_kept is None:
        problem = "only density and num_kept of single weights can be counted shard by shard"
    elif options.mask_bias or options.mask_norm:
        problem = "mask_bias and mask_norm follow the graph of the whole network"
    elif isinstance(pruner, Random) and pruner.quota == "smart_ratio" and pruner.residual is None:
        problem = "smart_ratio finds out by the whole network whether it is residual; give residual"
    if problem is not None:
        raise ValueError(
            f"the network is whole on no rank, and {problem}; create it in the module's"
            " constructor, without the meta device, and shard it in configure_model()"
        )


@torch.no_grad()
def _scores(
    pruner: Pruner, weights: Mapping[str, nn.Parameter], num_kept: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the scores of this rank's part of each weight."""
    if isinstance(pruner, Random):
        shapes = [weight.shape for weight in weights.values()]
        unpruned = (torch.ones((), dtype=torch.bool).expand(shape) for shape in shapes)
        drawn = pruner.draw(shapes, unpruned, num_kept)
        for (name, weight), score in zip(weights.items(), drawn, strict=True):
            yield name, own_part(score, weight)
        return
    for name, weight in weights.items():
        whole: Tensor = weight.detach()
        if isinstance(pruner, LAMP):
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
        else:
            whole = local(whole)
        exact = whole.to(torch.promote_types(whole.dtype, torch.float32))
        state = PruningState(nn.Module(), weights={name: exact}, masks={})
        scored: Any = pruner.score(state)[name]
        yield name, own_part(scored, weight) if isinstance(pruner, LAMP) else scored


def _check_scores(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Check on all ranks together that scores are finite and not all zero in a layer."""
    bad = torch.stack([~score.isfinite().all() for score in scores.values()])
    nonzero = torch.stack([score.any() for score in scores.values()])
    flags = torch.stack([bad, nonzero]).int()
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    for name, infinite, scored in zip(weights, *flags.tolist(), strict=True):
        if infinite:
            raise FloatingPointError(
                f"the scores of {name!r} are not finite; the masks would be meaningless. Look for"
                " infinite weights there"
            )
        if not scored:
            raise ValueError(
                f"every score of {name!r} is zero, so its masks would be arbitrary; exclude it, or"
                " initialise it before configure_model() returns"
            )
