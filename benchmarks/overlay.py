"""Compare the training steps of recipes with those of the same recipes under an overlay.

    python -m benchmarks.overlay trainer/cpu [--recipes cifar10_resnet20 cifar10_vgg16]
        [--densities 1 0.1 0.01] [--steps 20] [--runs 3] [--threads N]

Both run through the command line, in turn, on random bytes in the shape of CIFAR-10. Training steps
are timed from the fourth to the last, with everything between them. The benchmark also prints
whether both chose the same masks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from typing import Any, ClassVar

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.timing import Seconds, environment, now, since, table
from synflow_pl import PruneAtInit
from synflow_pl.cli.main import run

_UNTIMED = 3


class Steps(Callback):
    """Callback that records the duration of the steps of each fit, and its masks."""

    seconds: ClassVar[list[Seconds]] = []
    masks: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the first step that counts."""
        if batch_idx == _UNTIMED:
            self._began = now()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the time since then, and the masks of the network."""
        self.seconds.append(since(self._began, 1 / (trainer.num_training_batches - _UNTIMED)))
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        (pruning,) = (one for one in callbacks if isinstance(one, PruneAtInit))
        self.masks.append({name: mask.clone() for name, mask in (pruning.masks or {}).items()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overlay")
    parser.add_argument("--recipes", nargs="+", default=["cifar10_resnet20", "cifar10_vgg16"])
    parser.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.1, 0.01])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["IMAGES"] = str(256 * (options.steps + _UNTIMED))
    print(environment())
    for recipe in options.recipes:
        for density in options.densities:
            _compare(recipe, density, options)


def _compare(recipe: str, density: float, options: argparse.Namespace) -> None:
    """Run a recipe at one density with and without the overlay, in turn, and print the times."""
    kinds: dict[str, list[str]] = {"recipe": [], options.overlay: ["-c", options.overlay]}
    taken: dict[str, list[Seconds]] = {kind: [] for kind in kinds}
    Steps.masks.clear()
    for _ in range(options.runs):
        for kind, overlay in kinds.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                open(os.devnull, "w") as nothing,
                contextlib.redirect_stdout(nothing),
            ):
                run(_command(recipe, density, options.steps, folder, overlay))
            taken[kind].append(Steps.seconds[-1])
    table(taken, "recipe", f"a step of {recipe} at {density:g}")
    first, *others = Steps.masks
    equal = all(
        masks.keys() == first.keys() and all(map(torch.equal, masks.values(), first.values()))
        for masks in others
    )
    print(f"  masks: {'equal' if equal else 'different'}", flush=True)


def _command(recipe: str, density: float, steps: int, folder: str, overlay: list[str]) -> list[str]:
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": steps + _UNTIMED,
        "limit_val_batches": 0,
        "default_root_dir": folder,
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "enable_checkpointing": "false",
        "callbacks+": f"{__name__}.Steps",
    }
    pruning = ["-c", "pruners/dense"] if density == 1 else [f"--pruning.density={density:g}"]
    data = ["--data", "benchmarks.epoch.MadeUp", "--data.val_size", "0"]
    given = [f"--trainer.{key}={value}" for key, value in trainer.items()]
    return ["fit", "-c", recipe, *overlay, *pruning, *data, *given]


if __name__ == "__main__":
    main()
