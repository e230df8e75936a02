"""Masks of a network whose parameters are sharded over the ranks of a training.

Each mask is a bool DTensor with the device mesh and the placements of its parameter, so a rank
holds one byte for each of its weights. Masks are applied to local shards, without communication.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from synflow_pl.masks import Masks
from synflow_pl.optimizer_hook import Hold, hookable
from synflow_pl.training.state_dict_matching import canonical
from synflow_pl.training.zeros import Zeros

__all__ = [
    "ShardedHold",
    "ShardedMasks",
    "ShardedZeros",
    "gather",
    "local",
    "named_shards",
    "num_shards",
    "own_part",
    "sharded_like",
]


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds, as a view; the tensor if it is whole.

    Args:
        tensor: Tensor, or DTensor.
    """
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def named_shards(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a network by the names that they have in the plain network.

    Args:
        network: Network that may have wrappers, such as those of activation checkpointing, whose
            attributes are left out of the names.
    """
    named = network.named_parameters(remove_duplicate=False)
    return {canonical(name): parameter for name, parameter in named}


def sharded_like(parameter: Tensor, shard: Tensor) -> Tensor:
    """Return a tensor that is sharded like a parameter, from the part that this rank holds.

    Args:
        parameter: Parameter of the network.
        shard: Tensor in the shape of this rank's part of the parameter.

    Returns:
        DTensor with the parameter's global shape; ``shard`` if the parameter is whole.
    """
    if not isinstance(parameter, DTensor):
        return shard
    return DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def num_shards(tensor: Tensor) -> int:
    """Return the number of parts into which a tensor is sharded; 1 if it is whole.

    Args:
        tensor: Tensor, or DTensor without pending sums.
    """
    if not isinstance(tensor, DTensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in sizes if not placement.is_replicate())


def own_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of the part of a whole tensor that this rank holds of a parameter.

    Args:
        whole: Tensor in the parameter's global shape.
        parameter: Parameter of the network.

    Returns:
        Tensor on the device of the parameter.
    """
    part = whole
    if isinstance(parameter, DTensor):
        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        part = whole[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]
    own = local(parameter)
    # The memory format of the parameter, so that both are traversed in the same order.
    return torch.empty_like(own, dtype=whole.dtype, requires_grad=False).copy_(part)


class ShardedMasks(Masks):
    """Masks of a network with sharded parameters.

    Args:
        masks: Bool masks by the parameter's name in the plain network: DTensors for sharded
            parameters.
        followers: Names of the masks of biases, gains and shifts, as in
            :class:`synflow_pl.Masks`.
        kept: Number of weights kept, over all ranks.
    """

    def __init__(self, masks: Mapping[str, Tensor], followers: Iterable[str], kept: int) -> None:
        super().__init__(masks, followers)
        self._kept = kept

    @property
    def kept(self) -> int:
        """Number of weights kept, over all ranks."""
        return self._kept

    @classmethod
    def of(cls, masks: Masks, network: nn.Module) -> ShardedMasks:
        """Return masks that are sharded as the parameters of a network are.

        Every rank has to call this method if ``masks`` has DTensors.

        Args:
            masks: Whole masks, which are equal on all ranks, or masks from a distributed
                checkpoint, which are sharded already.
            network: Network with sharded parameters.

        Raises:
            ValueError: If the masks do not fit the network, as in
                :meth:`synflow_pl.Masks.parameters`.
        """
        if isinstance(masks, cls):
            masks.parameters(network)
            return masks
        present = named_shards(network)
        shards = {}
        for name, mask in masks.items():
            if isinstance(mask, DTensor) or name not in present:
                shards[name] = mask
            elif mask.shape == present[name].shape:
                shards[name] = sharded_like(present[name], own_part(mask, present[name]))
            else:
                shards[name] = mask
        kept = (
            _count_on_all_ranks([shards[name] for name in masks.weights])
            if any(isinstance(mask, DTensor) for mask in masks.values())
            else masks.kept
        )
        sharded = cls(shards, masks.followers, kept)
        sharded.parameters(network)
        return sharded

    def _parameters_of(self, network: nn.Module) -> dict[str, nn.Parameter]:
        return named_shards(network)

    def apply(self, network: nn.Module) -> None:
        """Set every pruned weight to zero in this rank's shards, in place.

        Args:
            network: Network that the masks belong to.

        Raises:
            ValueError: If the masks do not fit, as in :meth:`parameters`; nothing is changed then.
        """
        for parameter, mask in self.parameters(network):
            _keep(local(parameter), local(mask))

    def hold(self, network: nn.Module, optimizer: Optimizer) -> Hold:
        """Keep pruned weights at zero: each ``optimizer.step()`` ends by zeroing local shards.

        Args:
            network: Network that the masks belong to.
            optimizer: Optimiser of its parameters.

        Raises:
            ValueError: If the masks do not fit, as in :meth:`parameters`.
        """
        return ShardedHold(self.parameters(network), optimizer)

    def state_dict(self) -> dict[str, object]:
        """Return the masks as DTensors, for a distributed checkpoint or :func:`gather`."""
        return {"masks": dict(self), "followers": sorted(self.followers)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write whole masks to a safetensors file, on rank 0; a collective call.

        Args:
            path: Path of the file; missing folders are created.

        Raises:
            OSError: On rank 0, if the folder cannot be written.
        """
        whole = self.gather()
        if distributed.get_rank() == 0:
            whole.save(path)

    def gather(self) -> Masks:
        """Return whole masks, on the CPU of rank 0; a collective call.

        On ranks other than 0 the masks are empty.
        """
        return Masks(gather(dict(self)), self.followers)


class ShardedHold(Hold):
    """Handle that keeps pruned weights at zero in this rank's shards while an optimiser steps.

    Args:
        pairs: Parameters and their masks, sharded alike.
        optimizer: Optimiser of the parameters, or a wrapper of one.

    Raises:
        TypeError: If it is neither.
    """

    def __init__(self, pairs: list[tuple[nn.Parameter, Tensor]], optimizer: Optimizer) -> None:
        self._pairs = pairs
        self._handle = hookable(optimizer).register_step_post_hook(lambda *_: self.zero())

    def zero(self) -> None:
        """Set every pruned weight of this rank's shards to zero."""
        for parameter, mask in self._pairs:
            _keep(local(parameter), local(mask))

    def mask_gradients(self) -> None:
        """Set the gradients of the pruned weights of this rank's shards to zero."""
        for parameter, mask in self._pairs:
            if parameter.grad is not None:
                _keep(local(parameter.grad), local(mask))


class ShardedZeros(Zeros):
    """Set pruned weights to zero in this rank's shards if something else has written to them.

    Copies of the network, such as averages, are not searched for.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix, _nothing, _nothing)

    def hold(self, network: nn.Module, masks: Masks) -> None:
        """Use these masks from now on.

        Args:
            network: Network that is trained, with pruned weights that are zero.
            masks: Masks of the network, sharded as its parameters are.
        """
        self._watch(network)
        present = named_shards(network)
        self._pairs = {name: (present[name], local(mask)) for name, mask in masks.items()}

    @torch.no_grad()
    def check(self) -> None:
        """Set pruned weights to zero where they are not, and warn once on this rank."""
        written = []
        for name, (parameter, mask) in self._pairs.items():
            shard = local(parameter)
            if bool((shard.ne(0) & ~mask).any()):
                _keep(shard, mask)
                written.append(name)
        if written and not self.written:
            warnings.warn(self._message(written), stacklevel=2)
        self.written = self.written or bool(written)


def gather(state: Any) -> Any:
    """Return nested dicts with every DTensor replaced by the whole tensor, on the CPU of rank 0.

    Every rank has to call this function. One tensor at a time is gathered.

    Args:
        state: Nested dicts with the same keys on every rank.

    Returns:
        The dicts; on ranks other than 0, empty tensors take the place of DTensors.
    """
    if isinstance(state, Mapping):
        return {key: gather(value) for key, value in state.items()}
    if not isinstance(state, DTensor):
        return state
    whole = state.full_tensor()
    return whole.cpu() if distributed.get_rank() == 0 else torch.empty(0, dtype=whole.dtype)


@torch.no_grad()
def _keep(shard: Tensor, mask: Tensor) -> None:
    """Set the entries of a shard to zero where its mask is false, in place.

    Raises:
        ValueError: If the shard has another shape than the mask.
    """
    if shard.shape != mask.shape:
        raise ValueError(
            f"a shard of shape {tuple(shard.shape)} has a mask of shape {tuple(mask.shape)}; was"
            " the parameter sharded again, or is its gradient placed otherwise than the parameter?"
        )
    # Unlike a multiplication, this gives +0.0 for infinite and negative entries, and unlike
    # masked_fill_ it needs no inverted copy of the mask.
    torch.where(mask, shard, shard.new_zeros(()), out=shard)


def _count_on_all_ranks(masks: list[Tensor]) -> int:
    """Return the number of true entries of masks, counting replicas once; a collective call."""
    world = distributed.get_world_size()
    # Each shard is held by as many ranks as there are replicas of it.
    counts = [int(local(mask).count_nonzero()) * num_shards(mask) for mask in masks]
    total = torch.tensor([sum(counts)], device=local(masks[0]).device)
    distributed.all_reduce(total)
    return int(total) // world


def _nothing() -> Iterator[Any]:
    return iter(())
