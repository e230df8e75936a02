"""Compare an epoch through the command line with an epoch of a bare training loop.

    python -m benchmarks.epoch [--epochs 4] [--images 4096] [--threads N]
        [--recipe cifar10_resnet20]
    python -m benchmarks.epoch --device cuda --recipe cifar10_vgg16 --images 50000 --epochs 6
        --precision bf16-mixed

Images are random bytes in the shape of CIFAR-10, held in memory. The bare loop reads the same
batches from the same kind of loader, without Lightning, metrics, loggers and masks. It runs an
epoch before each epoch of the command line, in the same process. An epoch is timed from its start
to the start of the next, with checkpoints and logging. The first epoch of each does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.timing import Seconds, environment, now, since, table
from synflow_pl.cli.main import run
from synflow_pl.data import CIFAR10
from synflow_pl.networks import VGG, ResNet

NETWORKS = {"cifar10_resnet20": ResNet, "cifar10_vgg16": VGG}


class MadeUp(CIFAR10):
    """CIFAR-10 with random bytes as images."""

    def prepare_data(self) -> None:
        """Do nothing, since nothing is downloaded."""

    def images(self, train: bool) -> tuple[Tensor, Tensor]:
        count = int(os.environ["IMAGES"])
        generator = torch.Generator().manual_seed(0)
        bytes_ = torch.randint(
            0, 256, (count, *self.input_shape), generator=generator, dtype=torch.uint8
        )
        return bytes_, torch.arange(count) % self.num_classes


class Clock(Callback):
    """Callback that times the epochs of a fit, and a bare epoch before each of them."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Seconds]] = {"bare loop": [], "command line": []}
        self._began: Seconds | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set up the bare loop."""
        self._device = pl_module.device
        self._amp = (
            torch.autocast(self._device.type, torch.bfloat16)
            if "bf16" in str(trainer.precision)
            else contextlib.nullcontext()
        )
        torch.manual_seed(0)
        self._network = NETWORKS[os.environ["RECIPE"]]().to(self._device)
        if os.environ["CHANNELS_LAST"] == "1":
            self._network.to(memory_format=torch.channels_last)
            pl_module.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(
            self._network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        data = MadeUp(val_size=0)
        data.setup("fit")
        self._loader = data.train_dataloader()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the time of the previous epoch, and run and time a bare epoch."""
        if self._began is not None:
            self.taken["command line"].append(since(self._began))
        began = now()
        self._network.train()
        for images, labels in self._loader:
            images, labels = images.to(self._device), labels.to(self._device)
            self._optimizer.zero_grad()
            with self._amp:
                loss = cross_entropy(self._network(images), labels)
            loss.backward()
            self._optimizer.step()
        self.taken["bare loop"].append(since(began))
        self._began = now()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the times, except that of the last epoch, which has no next start."""
        count = len(self.taken["command line"])
        table(
            {name: runs[1:count] for name, runs in self.taken.items()},
            "bare loop",
            f"an epoch of {os.environ['IMAGES']} images",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--recipe", choices=NETWORKS, default="cifar10_resnet20")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ |= {
        "IMAGES": str(options.images),
        "RECIPE": options.recipe,
        "CHANNELS_LAST": str(int(options.device == "cuda")),
    }
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        trainer: dict[str, Any] = {
            "accelerator": options.device,
            "devices": 1,
            "max_epochs": options.epochs + 2,
            "precision": options.precision,
            "default_root_dir": folder,
            "enable_progress_bar": "false",
            "enable_model_summary": "false",
            "callbacks+": "benchmarks.epoch.Clock",
        }
        given = [f"--trainer.{key}={value}" for key, value in trainer.items()]
        run(
            [
                "fit",
                "-c",
                options.recipe,
                "--data",
                "benchmarks.epoch.MadeUp",
                "--data.val_size",
                "0",
                "--pruning.rounds",
                "5",
                *given,
            ]
        )


if __name__ == "__main__":
    main()
