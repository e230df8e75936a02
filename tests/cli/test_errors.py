"""Tests of mistakes on the command line: one sentence, exit status 2, and no data is read."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from synflow_pl.cli.main import run

FIT = "fit -c mnist_fc"
NAMED = "fit --model.network FC --data Digits --pruning.density 0.1"

# Command lines, with a part of the error message of each.
MISTAKES = {
    # options
    f"{FIT} --pruning.densty 0.1": (
        "there is no option pruning.densty; did you mean pruning.density?"
    ),
    f"{FIT} --pruning.densty=0.1": (
        "there is no option pruning.densty; did you mean pruning.density?"
    ),
    f"{FIT} --trainer.max_epoch 1": (
        "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"
    ),
    f"{FIT} --pruning.round 5": "there is no option pruning.round; did you mean pruning.rounds?",
    f"{FIT} --seed 5": "there is no option seed",
    f"{FIT} --model.network.widht 5": "there is no option widht; did you mean width?",
    f"{FIT} --model.network.init_args.widht 5": "there is no option widht; did you mean width?",
    f"{FIT} --data.batch_sise 5": "there is no option batch_sise; did you mean batch_size?",
    f"{FIT} surplus": "there is no option surplus",
    # values
    f"{FIT} --pruning.density 0": "density: 0.0 is not in (0, 1]",
    f"{FIT} --pruning.density -0.5": "density: -0.5 is not in (0, 1]",
    f"{FIT} --pruning.density 1.5": "density: 1.5 is not in (0, 1]",
    f"{FIT} --pruning.density nan": "density: 'nan' is not a number",
    f"{FIT} --pruning.density abc": "pruning.density: 'abc' is not a number",
    f"{FIT} --pruning.num_kept 5": "got density=0.1, num_kept=5",
    f"{FIT} --pruning.rounds 0": "rounds: 0 must be a whole number, at least 1",
    f"{FIT} --pruning.scope globl": "'globl' is not one of global, local; did you mean global?",
    f"{FIT} --pruning.schedule exponental": (
        "'exponental' is not one of exponential, linear, cubic or null; did you mean exponential?"
    ),
    f"{FIT} --pruning.on_collapse eror": "'eror' is not one of error, warn; did you mean error?",
    f"{FIT} --trainer.max_epochs abc": "trainer.max_epochs: 'abc' is not a whole number",
    f"{FIT} --data.batch_size 0": "batch_size: 0 must be at least 1",
    f"{FIT} --data.val_size -1": "val_size: -1 must be at least 0",
    f"{FIT} --model.network.width 0": "FC: width=0 must be at least 1",
    "fit -c cifar10_vgg16 --model.network.depth 12": "depth: '12' is not one of 11, 13, 16, 19",
    "fit -c cifar10_resnet20 --model.network.depth 21": "ResNet: depth=21 is not 6n + 2",
    f"{FIT} --run a/b": "run: 'a/b' cannot be a run's name",
    "fit --model.network FC --data Digits": "give either density, in (0, 1], or num_kept",
    # classes
    f"{FIT} --model.network Cnov": (
        "'Cnov' is not a class that can be used here; did you mean Conv (synflow_pl.networks.Conv)?"
    ),
    f"{FIT} --model.network synflow_pl.networks.ResNt": (
        "did you mean ResNet (synflow_pl.networks.ResNet)?"
    ),
    f"{FIT} --model.network nowhere.Nothing_": (
        "'nowhere.Nothing_' is not a class that can be used here; there are FC, VGG"
    ),
    f"{FIT} --pruning.pruner SynFlo": "did you mean SynFlow (synflow_pl.pruners.SynFlow)?",
    f"{FIT} --pruning.pruner torch.nn.Linear": (
        "pruning.pruner: 'torch.nn.Linear' is not a class that can be used here; there are"
    ),
    f"{FIT} --data MNISTT": "did you mean MNIST (synflow_pl.data.MNIST)?",
    f"{FIT} --model.optimizer SDG": "did you mean SGD (torch.optim.SGD)?",
    # what is missing
    "fit --data Digits --pruning.density 0.1": (
        "model.network is missing; name a recipe with -c (mnist_fc), or give --model.network"
    ),
    "fit --model.network FC --pruning.density 0.1": (
        "data is missing; name a recipe with -c (mnist_fc), or give --data"
    ),
    "fit -c mnist_cf": (
        "no recipe 'mnist_cf': neither a file nor one of ours; did you mean 'mnist_fc'?"
    ),
    "fit --config=mnist_cf": "no recipe 'mnist_cf'",
    f"{FIT} -c": "expected one argument",
    f"{FIT} --pruning.masks_path nowhere.safetensors": "no masks at 'nowhere.safetensors'",
    f"{FIT} --ckpt_path nowhere": "no checkpoint at 'nowhere'",
    "test --ckpt_path nowhere": "no checkpoint at 'nowhere'",
    "test --ckpt_path empty_run": "the run 'empty_run' has no checkpoint",
    "fti -c mnist_fc": "'fti'",
    # networks from elsewhere
    f"{FIT} --model.network torchvision.models.resnet18": (
        "model.network: 'torchvision.models.resnet18' is a function, expected a class;"
        " use --model.network TorchVision --model.network.name resnet18"
    ),
    f"{FIT} --model.network=timm.models.resnet.resnet18": (
        "use --model.network Timm --model.network.name resnet18"
    ),
    f"{FIT} -c function.yaml": (
        "'torchvision.models.vgg11' is a function, expected a class; use --model.network "
        "TorchVision"
    ),
    f"{FIT} --model.network my.Nothing": "'my.Nothing' is not a class that can be used here",
    f"{FIT} --model.network TorchVision": "name is missing",
    f"{FIT} --model.network TorchVision --model.network.name resnet19": (
        "no network 'resnet19'; the nearest name is 'resnet18'"
    ),
    f"{FIT} --model.network TorchVision --model.network.name resnet18": (
        "read 3 channels, the data has 1; use Timm"
    ),
    # weights
    f"{FIT} --network_weights nowhere.pt": "no checkpoint at 'nowhere.pt'",
    f"{FIT} --network_weights broken.yaml": "'broken.yaml' cannot be read with weights_only",
    # files
    f"{FIT} -c wrong_key.yaml": "there is no option pruning.densty; did you mean pruning.density?",
    f"{FIT} -c wrong_section.yaml": "there is no option prunning",
    f"{FIT} -c wrong_argument.yaml": "there is no option widht; did you mean width?",
    f"{FIT} -c wrong_value.yaml": (
        "pruning.scope: 'globl' is not one of global, local; did you mean global?"
    ),
    f"{FIT} -c broken.yaml": "Problems parsing config",
}


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "wrong_key.yaml").write_text("pruning: {densty: 0.1}\n")
    (folder / "wrong_section.yaml").write_text("prunning: {density: 0.1}\n")
    (folder / "wrong_argument.yaml").write_text(
        "model: {network: {class_path: synflow_pl.networks.FC, init_args: {widht: 3}}}\n"
    )
    (folder / "wrong_value.yaml").write_text("pruning: {scope: globl}\n")
    (folder / "broken.yaml").write_text("pruning: {density: 0.1\n")
    (folder / "function.yaml").write_text(
        "model: {network: {class_path: torchvision.models.vgg11}}\n"
    )
    (folder / "empty_run").mkdir()
    return folder


@pytest.mark.parametrize(("typed", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_reported_in_one_sentence(
    typed: str, message: str, files: Path, touched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(shlex.split(typed))

    out, err = capsys.readouterr()
    assert raised.value.code == 2
    assert message in err
    assert err.startswith("synflow_pl: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "usage" not in err.lower()
    assert out == ""
    assert touched == []
    assert not (files / "lightning_logs").exists()


# Mistakes that are detected after parsing, with a part of the error message of each.
LATER_MISTAKES = {
    f"{NAMED} --trainer.max_epochs -5": "max_epochs",
    f"{NAMED} --trainer.devices 0": "devices",
    f"{NAMED} --trainer.accelerator nonsense": "nonsense",
    f"{NAMED} --model.network.num_classes 0": "num_classes=0 must be at least 1",
    f"{NAMED} --model.network.num_classes -1": "num_classes=-1 must be at least 1",
    f"{NAMED} --model.network.nonlinearity torch.nn.Tnah": (
        "model.network: FC: module 'torch.nn' has no attribute 'Tnah'"
    ),
    f"{NAMED} --data.val_size 5000": "val_size: 5000 leaves none",
    f"{NAMED} --pruning.exclude [nolayer.*]": "exclude: 'nolayer.*' matches no prunable parameter",
    f"{NAMED} --pruning.network backbon": "no submodule 'backbon'",
    f"{NAMED} --model.optimizer SGD --model.optimizer.lr -1": "nvalid learning rate",
    "fit --model.network FC --data Digits --pruning.num_kept 500000": (
        "num_kept: 500000 is more than the 119400 prunable weights"
    ),
    "fit --model.network FC --data Digits --pruning.num_kept 5 --pruning.pruner Random": (
        "the network is dead"
    ),
}


@pytest.mark.parametrize(("typed", "message"), LATER_MISTAKES.items(), ids=LATER_MISTAKES)
def test_a_mistake_that_is_detected_after_parsing_is_reported_in_one_sentence(
    typed: str, message: str, folder: Path, generated: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(shlex.split(f"{typed} --trainer.enable_progress_bar false"))

    assert raised.value.code in (1, 2)
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("synflow_pl: error: ")
    ]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize(
    "refused", ["--trainer.max_epochs -5", "--model.optimizer SGD --model.optimizer.lr -1"]
)
def test_a_command_with_a_mistake_leaves_no_run_behind(refused: str, folder: Path) -> None:
    with pytest.raises(SystemExit):
        run(shlex.split(f"{NAMED} {refused}"))
    assert not (folder / "lightning_logs").exists()


@pytest.mark.parametrize("typed", ["--pruning.densty 0.1", "--pruning.density 0"])
def test_a_shell_sees_one_line_and_exit_status_2(typed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "synflow_pl", "fit", "-c", "mnist_fc", *shlex.split(typed)],
        cwd=tmp_path,
        env={**os.environ, "SYNFLOW_DATA": str(tmp_path / "no-data")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("synflow_pl: error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_enum_members_are_written_as_text_that_their_class_accepts() -> None:
    import enum

    import yaml
    from pytorch_lightning.callbacks.timer import Interval

    class Colour(enum.Enum):
        RED = 1

    assert yaml.safe_load(yaml.safe_dump({"interval": Interval.step, "colour": Colour.RED})) == {
        "interval": "step",
        "colour": "RED",
    }
