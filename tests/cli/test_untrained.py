"""Tests that evaluating an untrained network warns, and that an export requires a checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from synflow_pl.cli.export import compact_command, export_command
from synflow_pl.cli.main import run
from synflow_pl.cli.session import Session
from synflow_pl.networks import Conv
from tests.cli.conftest import QUIET

WARNING = (
    r"{} evaluates an untrained dense network with random weights, since no checkpoint is given; "
    "add --ckpt_path"
)
COMMANDS = ("validate", "test", "predict")


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "execute", lambda self, subcommand: None)


def warned(args: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run([*args, *QUIET])
    return [str(warning.message) for warning in caught if "untrained" in str(warning.message)]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_evaluation_without_a_checkpoint_warns_that_the_network_is_untrained(
    command: str, folder: Path
) -> None:
    with pytest.warns(UserWarning, match=WARNING.format(command)) as caught:
        run([command, "-c", "demo", *QUIET])
    assert sum("untrained" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_an_evaluation_of_weights_from_a_file_does_not_warn(command: str, folder: Path) -> None:
    torch.save(Conv(input_shape=(1, 28, 28)).state_dict(), "weights.pt")
    options = ["--data", "Digits", "--model.network", "Conv", "--pruning.density", "0.5"]
    assert warned([command, *options, "--network_weights", "weights.pt"]) == []
    assert len(warned([command, *options])) == 1


def test_a_training_does_not_warn_that_the_network_is_untrained(folder: Path) -> None:
    assert warned(["fit", "-c", "demo", "--trainer.fast_dev_run", "true"]) == []


@pytest.mark.parametrize("command", [compact_command, export_command])
def test_an_export_without_a_checkpoint_is_an_error_that_names_the_option(
    command, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as raised:
        command([])
    assert raised.value.code == 2
    stderr = capsys.readouterr().err
    assert "--ckpt_path" in stderr
    assert stderr.count("\n") == 1
