"""Name a run by the recipe, the pruner, the density and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from synflow_pl.runs import PRUNED, find_run_folder

__all__ = ["class_name", "recipe_name", "run_name"]


def run_name(options: Namespace, recipes: Sequence[Path], pruner: str | None = None) -> str:
    """Return the default name of a run.

    A training from the masks of a run of ``prune`` has the name of that run.

    Args:
        options: Options of the subcommand.
        recipes: Configuration files of the command line, in their order.
        pruner: Part of the name that identifies the pruner; by default the pruner's overlay or
            class, followed by the sanity check and the epoch of pruning.
    """
    pruning = options.pruning
    if pruning.masks_path and (source := Path(pruning.masks_path).resolve().parent.name).endswith(
        PRUNED
    ):
        return source.removesuffix(PRUNED)
    budgets = {
        "density": pruning.density,
        "kept": pruning.num_kept,
        "effective": pruning.effective_density,
        "flops": pruning.flops,
        "parameters": pruning.parameters,
        "latency": pruning.latency,
    }
    amounts = [
        f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
        for name, value in budgets.items()
        if value is not None
    ]
    granularity = pruning.granularity.replace(":", "_") if pruning.granularity != "weight" else ""
    if not amounts and not granularity:
        amounts = ["density1"]
    amount = "-".join([*([granularity] if granularity else []), *amounts[-1:]])
    return "-".join(
        [
            recipe_name(options, recipes),
            pruner or _pruner_name(pruning, recipes),
            amount,
            f"seed{options.seed_everything}",
        ]
    )


def recipe_name(options: Namespace, recipes: Sequence[Path]) -> str:
    """Return the name of the recipe, or of data and network if there is no recipe.

    Args:
        options: Options of the subcommand.
        recipes: Configuration files of the command line, in their order.
    """
    recipe = next((path.stem for path in recipes if path.parent.name != "pruners"), None)
    network = options.model.network
    # TorchVision and Timm networks have the architecture in `name`.
    architecture = network.get("init_args", {}).get("name") or class_name(network)
    return recipe or f"{class_name(options.data)}_{architecture}"


def _pruner_name(pruning: Namespace, recipes: Sequence[Path]) -> str:
    if pruning.masks_path:
        path = Path(pruning.masks_path).resolve()
        return f"masks_{path.parent.name if find_run_folder(path) is not None else path.stem}"
    overlay = next((path.stem for path in reversed(recipes) if path.parent.name == "pruners"), None)
    pruner = overlay or (class_name(pruning.pruner) if pruning.pruner else "dense")
    sanity = f"_{pruning.sanity}" if pruning.sanity else ""
    return f"{pruner}{sanity}_at{pruning.at_epoch}" if pruning.at_epoch else f"{pruner}{sanity}"


def class_name(config: Namespace) -> str:
    """Return the name of a configured class in lower case, without its module."""
    return str(config.class_path).rpartition(".")[2].lower()
