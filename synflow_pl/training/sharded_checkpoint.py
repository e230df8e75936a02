"""Store masks in the checkpoints of a strategy that shards parameters, and restore them.

In a distributed checkpoint each rank writes the shards of its masks, as of its weights. In a single
file the masks are whole, so that it can be read like that of any other training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from synflow_pl.training.checkpoints import KEY, states
from synflow_pl.training.sharded_files import (
    is_sharded,
    leftover,
    load_shards,
    outline,
    write_shards,
)
from synflow_pl.training.sharded_masks import gather, local, named_shards, sharded_like
from synflow_pl.training.state_dict_matching import canonical, differences

__all__ = ["store_masks_in_checkpoints"]

_Path = str | Path


def store_masks_in_checkpoints(strategy: ModelParallelStrategy) -> None:
    """Let a strategy write checkpoints with masks, durably, and read them without running code.

    Args:
        strategy: Strategy of a Trainer, whose methods are replaced.
    """
    strategy.save_checkpoint = partial(_save, strategy)  # type: ignore[method-assign]
    strategy.load_checkpoint = partial(_load, strategy)  # type: ignore[method-assign]


def _save(
    strategy: ModelParallelStrategy,
    checkpoint: dict[str, Any],
    filepath: _Path,
    storage_options: Any | None = None,
) -> None:
    """Write a checkpoint, as ``ModelParallelStrategy.save_checkpoint`` does."""
    if storage_options is not None or not strategy._save_distributed_checkpoint:
        if KEY in checkpoint:
            checkpoint[KEY] = gather(checkpoint[KEY])
        type(strategy).save_checkpoint(strategy, checkpoint, filepath, storage_options)
        return
    sharded = {key: checkpoint.pop(key) for key in ("state_dict", KEY) if key in checkpoint}
    for index, state in enumerate(checkpoint.pop("optimizer_states", [])):
        sharded[f"optimizer_{index}"] = state
    path = Path(strategy.broadcast(filepath))
    write_shards(
        path, sharded, checkpoint, first=strategy.global_rank == 0, barrier=strategy.barrier
    )


def _load(
    strategy: ModelParallelStrategy, checkpoint_path: _Path, weights_only: bool | None = None
) -> dict[str, Any]:
    """Read a checkpoint, as ``ModelParallelStrategy.load_checkpoint`` does.

    Raises:
        ValueError: If a distributed checkpoint does not fit the module or its optimisers.
    """
    path = Path(strategy.broadcast(checkpoint_path))
    path = leftover(path) or path
    if not is_sharded(path):
        return type(strategy).load_checkpoint(strategy, path, weights_only=True)
    module = strategy.lightning_module
    assert module is not None
    content = outline(path)
    _load_weights(module, path, content)
    _load_optimizers(strategy, module, path, content)
    _load_masks(module, path, content)
    for loaded in ("state_dict", "optimizer_states"):
        content.pop(loaded, None)
    return content


def _load_weights(module: Any, path: Path, content: Mapping[str, Any]) -> None:
    weights: Any = get_model_state_dict(module)
    if module.strict_loading and (difference := differences(content["state_dict"], weights)):
        raise ValueError(
            f"the checkpoint {str(path)!r} does not fit this network: {difference}; give the"
            " network that it was trained with"
        )
    present = {name: w for name, w in weights.items() if name in content["state_dict"]}
    load_shards(path, {"state_dict": present})
    set_model_state_dict(module, present, options=StateDictOptions(strict=module.strict_loading))


def _load_optimizers(
    strategy: ModelParallelStrategy, module: nn.Module, path: Path, content: Mapping[str, Any]
) -> None:
    stored = len(content.get("optimizer_states", ()))
    if strategy.optimizers and stored != len(strategy.optimizers):
        raise ValueError(
            f"the checkpoint {str(path)!r} holds the states of {stored} optimisers, and"
            f" {len(strategy.optimizers)} are trained with; give a checkpoint of a training with as"
            " many"
        )
    for index, optimizer in enumerate(strategy.optimizers):
        own = get_optimizer_state_dict(module, optimizer)
        load_shards(path, {f"optimizer_{index}": own})
        set_optimizer_state_dict(module, optimizer, own)


def _load_masks(module: nn.Module, path: Path, content: dict[str, Any]) -> None:
    """Read the masks of each pruned network, sharded as its parameters are now, in place."""
    if KEY not in content:
        return
    parameters = named_shards(module)
    for prefix, state in states(content).items():
        masks = state.get("masks", {}).get("masks", {})
        for name, mask in masks.items():
            parameter = parameters.get(canonical(prefix + name))
            if parameter is None or parameter.shape != mask.shape:
                masks[name] = torch.empty(mask.shape, dtype=torch.bool)
            else:
                shard = torch.empty_like(local(parameter), dtype=torch.bool, requires_grad=False)
                masks[name] = sharded_like(parameter, shard)
    load_shards(path, {KEY: content[KEY]})
