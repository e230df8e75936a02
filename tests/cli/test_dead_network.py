"""Tests of layer collapse: the command exits with one sentence and status 1 before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import QUIET

from synflow_pl.cli.main import run
from synflow_pl.training import Classifier

FC = ["-c", "mnist_fc", "--pruning.density", "0.01"]
# In one round of magnitude pruning to 0.03, none of the classifier's 102,400 weights is kept.
RESNET18 = ["-c", "tiny_imagenet_resnet18", "--pruning.density", "0.03", "--data.batch_size", "8"]


@pytest.mark.parametrize(
    ("recipe", "density", "layer"),
    [
        (FC, "0.01", "layers.1.weight"),
        pytest.param(RESNET18, "0.03", "fc.weight", marks=pytest.mark.slow),
    ],
    ids=["fc", "resnet18"],
)
def test_layer_collapse_is_reported_in_one_sentence_before_any_training(
    recipe: list[str],
    density: str,
    layer: str,
    folder: Path,
    generated: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps: list[object] = []
    monkeypatch.setattr(Classifier, "training_step", lambda self, *_: steps.append(self))
    monkeypatch.setattr(Classifier, "validation_step", lambda self, *_: steps.append(self))
    with pytest.raises(SystemExit) as raised:
        run(
            [
                "fit",
                *recipe,
                "-c",
                "pruners/magnitude",
                "--run",
                "dead",
                "--trainer.accelerator",
                "cpu",
                *QUIET,
            ]
        )
    assert raised.value.code == 1
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("synflow_pl: error: ")
    ]
    assert line == (
        "synflow_pl: error: the network is dead: no path of kept weights leads from input to "
        f"output at density {density}; it breaks at '{layer}', which has no weight left; try more "
        "rounds, a larger density, another scope (local), or on_collapse warn to train it anyway"
    )
    assert steps == []
    assert not (folder / "lightning_logs" / "dead" / "checkpoints").exists()


def test_with_on_collapse_warn_a_disconnected_network_is_trained_after_a_warning(
    folder: Path, generated: None
) -> None:
    short = [
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "1",
        "--trainer.limit_val_batches",
        "1",
    ]
    with pytest.warns(
        UserWarning, match=r"the network is dead: .* it breaks at 'layers\.1\.weight'"
    ):
        cli = run(
            [
                "fit",
                *FC,
                "-c",
                "pruners/magnitude",
                "--pruning.on_collapse",
                "warn",
                "--trainer.accelerator",
                "cpu",
                *short,
                *QUIET,
            ]
        )
    assert cli.trainer.global_step == 1
