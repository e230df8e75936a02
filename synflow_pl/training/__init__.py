"""Train pruned networks: the LightningModule, the callback that prunes, and checkpoints."""

from synflow_pl.training.checkpoint_io import DurableCheckpointIO
from synflow_pl.training.checkpoints import find_checkpoint
from synflow_pl.training.classifier import Classifier
from synflow_pl.training.fully_shard import FullyShardStrategy
from synflow_pl.training.last_checkpoint import LastCheckpoint
from synflow_pl.training.prune_at_init import PruneAtInit
from synflow_pl.training.reseed import Reseed
from synflow_pl.training.rewinding import RewindPoint
from synflow_pl.training.warmup_cosine import WarmupCosine
from synflow_pl.training.weight_loading import load_weights

__all__ = [
    "Classifier",
    "DurableCheckpointIO",
    "FullyShardStrategy",
    "LastCheckpoint",
    "PruneAtInit",
    "Reseed",
    "RewindPoint",
    "WarmupCosine",
    "find_checkpoint",
    "load_weights",
]
