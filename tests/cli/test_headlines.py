"""Every command of the README and the documentation runs as a user runs it: exactly as printed,
with default settings, to its end or to Ctrl-C.

Progress bar, summary, logger and thread count are the defaults; only the data sets are replaced by
a few random images. A training that would last for minutes is stopped by Ctrl-C after its first
epochs and must then end by itself, in all its processes.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Command, Finished

from synflow_pl import Masks
from synflow_pl.data import CIFAR10, MNIST
from tests.data.generated import cifar, mnist
from tests.docs.pages import commands

LIMIT = 480.0
"""Seconds for one command on a busy machine with two cores; a hang is reported with the stacks of
all processes.
"""
RUN = "lightning_logs/mnist_fc-synflow-density0.1-seed0"


@dataclass(frozen=True)
class Headline:
    """A command of the README or the documentation.

    Attributes:
        command: as printed, without its comment.
        epochs: stop it by Ctrl-C after so many epochs; 0 lets it end by itself.
        needs: the command that makes the run that it reads.
        says: a pattern that its output must contain.
        slow: whether it takes longer than the default suite may.
        status: expected exit status.
    """

    command: str
    epochs: int = 0
    needs: str | None = None
    says: str = ""
    slow: bool = False

    @property
    def status(self) -> int:
        return 128 + signal.SIGINT if self.epochs else 0


FIT = "synflow_pl fit -c mnist_fc"
SWEEP = "synflow_pl sweep -c sweeps/digits"
PUBLISHED = 'synflow_pl sweep -c sweeps/figure6_cifar10 --recipes "[cifar10_vgg16]"'
PRUNE = "synflow_pl prune -c mnist_fc --pruning.density 0.01"
HEADLINES = (
    Headline(FIT, says="SynFlow kept"),
    Headline(
        "synflow_pl fit -c cifar10_vgg16 -c pruners/magnitude --pruning.density 0.05",
        epochs=2,
        says="Magnitude kept",
    ),
    Headline(f"synflow_pl test --ckpt_path {RUN}", needs=FIT, says="test/accuracy"),
    Headline(
        "synflow_pl predict --ckpt_path lightning_logs/NAME --data.predict_dir FOLDER",
        needs=FIT,
        says=r"predictions\.csv",
    ),
    Headline(PRUNE, says="fc"),
    Headline(
        "synflow_pl fit -c mnist_fc --pruning.masks_path"
        " lightning_logs/mnist_fc-synflow-density0.01-seed0-pruned/masks.safetensors",
        needs=PRUNE,
        epochs=2,
        says="masks from a file kept",
    ),
    Headline(
        "synflow_pl prune -c cifar10_vgg16 --compare synflow snip magnitude",
        says="magnitude",
        slow=True,
    ),
    Headline(
        "synflow_pl fit -c mnist_conv -c pruners/snip --pruning.at_epoch 2",
        epochs=4,
        says="SNIP kept",
    ),
    Headline(
        "synflow_pl fit -c mnist_conv -c pruners/gradual --pruning.pruner.end_fraction 0.75",
        epochs=2,
    ),
    Headline(
        "synflow_pl fit -c mnist_fc -c pruners/rigl --pruning.density 0.05",
        epochs=2,
        says="RigL kept",
    ),
    Headline(
        "synflow_pl fit -c mnist_fc -c pruners/set --pruning.pruner.delta_t 50",
        epochs=2,
        says="SET kept",
        slow=True,
    ),
    Headline(
        'synflow_pl sweep -c sweeps/mnist --pruners "[synflow, rigl, set]"',
        epochs=2,
        slow=True,
    ),
    Headline("synflow_pl multishot -c mnist_conv -c pruners/magnitude --levels 5", epochs=2),
    Headline(
        "synflow_pl multishot -c mnist_conv -c pruners/magnitude --levels 5 --rewind 2 --run late",
        epochs=4,
        slow=True,
    ),
    Headline(
        "synflow_pl fit -c cifar10_vgg16 --trainer.strategy ddp --trainer.devices 2",
        epochs=2,
        says="SynFlow kept",
    ),
    Headline("synflow_pl fit -c mnist_conv -c trainer/fsdp", epochs=2, says="SynFlow kept"),
    Headline(
        "synflow_pl fit -c demo -c trainer/fsdp --trainer.accelerator cpu --trainer.devices 2",
        says="SynFlow kept",
        slow=True,
    ),
    Headline(
        "synflow_pl fit -c cifar10_vgg16 --trainer.precision 16-mixed --model.compile true"
        " --model.channels_last true",
        epochs=2,
        slow=True,
    ),
    Headline("synflow_pl fit -c mnist_conv --ckpt_path last", epochs=2, says="SynFlow kept"),
    Headline(
        "synflow_pl compact --ckpt_path lightning_logs/NAME", needs=FIT, says=r"model\.safetensors"
    ),
    Headline("synflow_pl export --ckpt_path lightning_logs/NAME", needs=FIT, says=r"model\.onnx"),
    Headline(
        "synflow_pl fit -c cifar10_vgg16 --pruning.compact true", epochs=2, says="SynFlow kept"
    ),
    Headline(
        "synflow_pl fit -c cifar10_vgg16 --pruning.compact true --pruning.freeze_dead true",
        epochs=2,
        slow=True,
    ),
    Headline(
        "synflow_pl fit -c cifar10_resnet20 -c pruners/synflow_auto -c structure/units"
        " --pruning.compact true",
        epochs=2,
        says="SynFlow kept",
    ),
    Headline(
        "synflow_pl fit -c cifar10_resnet20 -c structure/two_of_four",
        epochs=2,
        says="SynFlow kept",
        slow=True,
    ),
    Headline("synflow_pl sweep -c sweeps/mnist --parallel 2", epochs=2),
    Headline(PUBLISHED, epochs=2, slow=True),
    Headline(SWEEP, says="2 of them finished|test accuracy", slow=True),
    Headline("synflow_pl report sweeps/digits", needs=SWEEP, says="synflow", slow=True),
    Headline("synflow_pl experiment units -c cifar10_resnet20", slow=True),
    Headline("synflow_pl experiment layers -c cifar10_vgg16", slow=True),
    Headline("synflow_pl experiment magnitude -c mnist_fc --model.optimizer.lr 0.001", slow=True),
    Headline(
        "synflow_pl experiment schedule -c cifar10_vgg16 --exponents 1 2 --rounds 1 10 30",
        slow=True,
    ),
)
NEEDED = {headline.needs for headline in HEADLINES}
ELSEWHERE = {
    "synflow_pl fit -c cifar10_resnet20 --trainer.strategy ddp --trainer.devices 2"
    " --trainer.sync_batchnorm true": "GPUs only",
    "synflow_pl predict --ckpt_path lightning_logs/NAME/export/model.onnx"
    " --data.predict_dir FOLDER": "below, after export",
    "synflow_pl report sweeps/mnist": "below, after a run of the sweep",
    "synflow_pl sweep -c sweeps/rivals": "test_sweep_files.py; it takes hours",
    "synflow_pl report sweeps/rivals": "test_report.py",
    f'{PUBLISHED} --pruners "[dense, synflow]" --densities "[0.1, 0.01]" --seeds "[0]"': (
        "above, with more pruners, densities and seeds"
    ),
    "synflow_pl report sweeps/figure6_cifar10 --paper": "test_report.py",
    "synflow_pl report sweeps/figure6_cifar10 --paper --out report_vgg16": "test_report.py",
}
"""Commands that need what one test cannot give them (GPUs, a finished sweep), and where they are
tested.
"""

# Files of CIFAR-10 are compared with the published checksums whenever they are used. This makes
# those of the generated files pass.
STARTUP = """
import importlib.abc, importlib.machinery, sys

class _Generated(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision.datasets.cifar":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            sums = CHECKSUMS
            for files in (module.CIFAR10.train_list, module.CIFAR10.test_list):
                files[:] = [[name, sums[name]] for name, _ in files]
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, _Generated())
"""


def test_every_command_of_the_readme_and_the_documentation_is_tried() -> None:
    tried = [headline.command for headline in HEADLINES]
    quick = ("--help", "--print_config")
    printed = [line for line in commands("synflow_pl") if not line.endswith(quick)]
    assert sorted([*tried, *ELSEWHERE]) == sorted(printed)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST of 240 random images, CIFAR-10 of 100, and a folder of pictures, in the layout of the
    published files.
    """
    folder = tmp_path_factory.mktemp("data")
    mnist(MNIST, folder, 240)
    cifar(CIFAR10, folder, 200)
    (folder / "pictures").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{index}.png")
    return folder


class Shell:
    """A working directory in which commands are typed.

    Args:
        folder: the working directory.
        data: folder of the data sets.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        sums = {
            path.name: hashlib.md5(path.read_bytes()).hexdigest()
            for path in (data / CIFAR10.origin.base_folder).iterdir()
        }
        self._startup = STARTUP.replace("CHECKSUMS", repr(sums))
        self._programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def start(self, command: str) -> Command:
        """Start a command with NAME and FOLDER filled in."""
        words = shlex.split(
            command.replace("lightning_logs/NAME", RUN).replace(
                "FOLDER", str(self.data / "pictures")
            )
        )
        program = shutil.which(words[0], path=self._programs)
        if program is None:
            pytest.skip(f"{words[0]} is not installed beside {sys.executable}")
        environment = {"SYNFLOW_DATA": str(self.data), "PATH": self._programs}
        return Command(
            [program, *words[1:]],
            self.folder,
            environment,
            without=("OMP_NUM_THREADS",),
            startup=self._startup,
        )

    def run(self, command: str, epochs: int = 0) -> Finished:
        """Run it to its end, or send Ctrl-C after some epochs and wait until it has ended."""
        with self.start(command) as running:
            limit = time.monotonic() + LIMIT
            while epochs and self.epochs() < epochs and running.process.poll() is None:
                if time.monotonic() > limit:
                    raise AssertionError(
                        f"{command}: no {epochs} epochs within {LIMIT} s\n"
                        f"{running.output[-2000:]}\n{running.stacks()}"
                    )
                time.sleep(0.1)
            if epochs:
                assert running.process.poll() is None, running.output
                running.send(signal.SIGINT)
            return running.wait(LIMIT)

    def epochs(self) -> int:
        """The epochs whose validation stands in the metrics of any run."""
        counts = []
        for path in self.folder.rglob("metrics.csv"):
            with path.open() as file:
                counts.append(sum(bool(row.get("val/loss")) for row in csv.DictReader(file)))
        return max(counts, default=0)


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, data: Path
) -> Callable[[str], tuple[Path, Finished]]:
    """A function that runs a command once and returns the folder in which it ran and how it
    ended.
    """
    results: dict[str, tuple[Path, Finished]] = {}

    def make(command: str) -> tuple[Path, Finished]:
        if command not in results:
            folder = tmp_path_factory.mktemp("made")
            results[command] = folder, Shell(folder, data).run(command)
        return results[command]

    return make


@pytest.fixture
def shell(tmp_path: Path, data: Path) -> Shell:
    return Shell(tmp_path, data)


@pytest.mark.parametrize(
    "headline",
    [
        pytest.param(
            x, id=x.command.removeprefix("synflow_pl "), marks=[pytest.mark.slow] if x.slow else []
        )
        for x in HEADLINES
    ],
)
def test_it_runs_as_printed_with_default_settings(
    headline: Headline, shell: Shell, made: Callable[[str], tuple[Path, Finished]]
) -> None:
    if headline.needs is not None:
        shutil.copytree(made(headline.needs)[0], shell.folder, dirs_exist_ok=True)
    once = headline.command in NEEDED
    done = made(headline.command)[1] if once else shell.run(headline.command, headline.epochs)
    assert done.returncode == headline.status, done.output
    assert re.search(headline.says, done.output), done.output
    assert "Traceback" not in done.output
    assert "Error" not in done.output


def test_two_processes_started_as_printed_end_by_themselves_with_the_masks_of_one(
    shell: Shell, tmp_path: Path
) -> None:
    """The deadlock of default settings: the progress bar of rank 0 alone computed a metric of all
    ranks.
    """
    command = "synflow_pl fit -c demo --trainer.max_epochs 2"
    for options in ("--run two --trainer.strategy ddp --trainer.devices 2", "--run one"):
        done = shell.run(f"{command} {options}")
        assert done.returncode == 0, done.output
    two, one = (
        Masks.load(tmp_path / "lightning_logs" / run / "masks.safetensors")
        for run in ("two", "one")
    )
    assert two.keys() == one.keys()
    assert all(torch.equal(two[name], one[name]) for name in one)


def test_what_was_exported_predicts_as_printed(
    shell: Shell, made: Callable[[str], tuple[Path, Finished]]
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    shutil.copytree(made(FIT)[0], shell.folder, dirs_exist_ok=True)
    for command in ("synflow_pl export --ckpt_path lightning_logs/NAME", list(ELSEWHERE)[1]):
        done = shell.run(command)
        assert done.returncode == 0, done.output
    with (shell.folder / RUN / "export" / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


def test_a_training_stopped_by_ctrl_c_resumes_with_the_printed_command(shell: Shell) -> None:
    command = "synflow_pl fit -c mnist_conv --ckpt_path last"
    assert shell.run(command, epochs=2).returncode == 128 + signal.SIGINT
    done = shell.run(command, epochs=4)
    assert done.returncode == 128 + signal.SIGINT, done.output
    assert len(list((shell.folder / "lightning_logs").iterdir())) == 1


def test_the_report_of_a_sweep_is_written_as_printed(
    shell: Shell, made: Callable[[str], tuple[Path, Finished]]
) -> None:
    shutil.copytree(made(FIT)[0], shell.folder, dirs_exist_ok=True)
    done = shell.run(f"synflow_pl test --ckpt_path {RUN}")
    assert done.returncode == 0, done.output
    shutil.move(shell.folder / RUN, shell.folder / "sweeps/mnist" / RUN)
    done = shell.run("synflow_pl report sweeps/mnist")
    assert done.returncode == 0, done.output
    assert "MNIST, FC" in done.output


def test_tensorboard_starts_as_printed(
    shell: Shell, made: Callable[[str], tuple[Path, Finished]]
) -> None:
    shutil.copytree(made(FIT)[0], shell.folder, dirs_exist_ok=True)
    with shell.start("tensorboard --logdir lightning_logs") as running:
        running.wait_for("http://", LIMIT)
