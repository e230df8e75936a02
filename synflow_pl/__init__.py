"""Prune neural networks at initialisation with SynFlow and other pruners, and train them sparsely.

Training uses PyTorch Lightning. The public names are imported lazily, when they are first used, so
that ``synflow_pl --version`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synflow_pl.compaction import Compaction, compact
    from synflow_pl.diagnosis import Diagnosis, diagnose
    from synflow_pl.masks import Masks
    from synflow_pl.pruning import prune
    from synflow_pl.training import Classifier, PruneAtInit, load_weights

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Compaction",
    "Diagnosis",
    "Masks",
    "PruneAtInit",
    "__version__",
    "compact",
    "diagnose",
    "load_weights",
    "prune",
]

_MODULES = {
    "Classifier": "training",
    "Compaction": "compaction",
    "Diagnosis": "diagnosis",
    "Masks": "masks",
    "PruneAtInit": "training",
    "compact": "compaction",
    "diagnose": "diagnosis",
    "load_weights": "training",
    "prune": "pruning",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
