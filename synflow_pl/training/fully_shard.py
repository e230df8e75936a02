"""Shard a network over the devices by torch's ``fully_shard`` (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

__all__ = ["FullyShardStrategy", "shard_network"]


class FullyShardStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all devices in one data-parallel group.

    Parameters, gradients and the optimiser's state are sharded over all devices, of all machines.
    :class:`~synflow_pl.training.Classifier` shards its network for this strategy; another
    LightningModule shards its own in ``configure_model()``.

    Args:
        save_distributed_checkpoint: Whether a checkpoint is a folder to which each rank writes its
            shards, instead of a single file that rank 0 writes.
        process_group_backend: Backend of the processes' communication; by default nccl on GPUs and
            gloo on CPUs.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from synflow_pl.training import FullyShardStrategy
        >>> trainer = Trainer(strategy=FullyShardStrategy(), logger=False, accelerator="cpu")
    """

    def __init__(
        self, save_distributed_checkpoint: bool = True, process_group_backend: str | None = None
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Start the process group, with one data-parallel group of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard_network(
    network: nn.Module, mesh: DeviceMesh, *, compile: bool = False, **options: Any
) -> None:
    """Shard the blocks of a network and then the rest of it, in place.

    A block is a module directly within an ``nn.Sequential`` or ``nn.ModuleList`` that is not part
    of another block: a residual block, a transformer's layer or, in a plain chain, a single layer.
    Its parameters are gathered while it computes. A network that uses a parameter in several
    modules is sharded as a whole, since such a parameter cannot belong to two blocks.

    Args:
        network: Network with whole parameters; one that is sharded already is left as it is.
        mesh: One-dimensional device mesh.
        compile: Whether the forward of each block runs through torch.compile, in place.
        options: Other options of ``torch.distributed.fsdp.fully_shard``, such as ``mp_policy``.
    """
    if isinstance(network, FSDPModule):
        return
    once = len(list(network.parameters()))
    shared = once < sum(1 for _ in network.named_parameters(remove_duplicate=False))
    blocks = [] if shared else list(_blocks(network))
    for block in blocks or [network]:
        if compile:
            # block.compile() would include the hooks of fully_shard, which end a graph, and torch
            # does not compile what remains of a layer of torch.nn.
            block.forward = torch.compile(block.forward)
    for block in blocks:
        fully_shard(block, mesh=mesh, **options)
    fully_shard(network, mesh=mesh, **options)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules with parameters that are in a chain or a list of modules."""
    for child in module.children():
        listed = isinstance(module, (nn.Sequential, nn.ModuleList))
        if listed and not isinstance(child, (nn.Sequential, nn.ModuleList)):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)
