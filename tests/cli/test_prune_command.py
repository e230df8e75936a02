"""Tests of the command ``prune``: the data that it reads, the files of its run, comparisons."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUIET

from synflow_pl import Masks, prune
from synflow_pl.__main__ import main
from synflow_pl.cli import prune as command
from synflow_pl.cli.command_line import resolve_or_exit
from synflow_pl.cli.main import run
from synflow_pl.cli.session import Session
from synflow_pl.pruners import SynFlow
from synflow_pl.training import PruneAtInit

CPU = ["--trainer.accelerator", "cpu", *QUIET]
# With width 4, conv has 9 * 4 + 9 * 4 * 4 + 4 * 784 * 10 = 31,540 weights.
SMALL = ["-c", "demo", "--model.network.width", "4", "--pruning.rounds", "5", *CPU]
PICTURES = {
    f"{name}.{kind}"
    for name in ("density_per_layer", "layers_over_rounds")
    for kind in ("png", "pdf")
}


def pruned(*args: str) -> Session:
    return command._prune(command._command(resolve_or_exit(["prune", *args])))


def refused(*args: str) -> tuple[int, str]:
    """Return the exit status and the error message of a command that fails."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as raised:
        command.prune(list(args))
    (line,) = [
        line for line in err.getvalue().splitlines() if line.startswith("synflow_pl: error: ")
    ]
    assert isinstance(raised.value.code, int)
    return raised.value.code, line.removeprefix("synflow_pl: error: ")


def test_the_diagnosis_of_a_run_has_spectra_if_they_are_asked_for(folder: Path) -> None:
    pruned("-c", "mnist_fc", "--pruning.rounds", "2", "--pruning.spectra", "true", *CPU)
    (written,) = folder.glob("lightning_logs/*/diagnosis.csv")
    assert written.read_text().splitlines()[0].endswith(",flow,spectral_gap,ramanujan")


def test_a_data_free_pruner_reads_no_data(
    folder: Path, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["python", "prune", "-c", "mnist_fc", "--pruning.rounds", "5", *CPU]
    )
    main()
    assert touched == []
    # Nothing was downloaded.
    assert {path.name for path in folder.iterdir()} == {"lightning_logs"}
    assert (
        Masks.load("lightning_logs/mnist_fc-synflow-density0.1-seed0-pruned/masks.safetensors").kept
        == 11_940
    )


def test_the_run_contains_masks_diagnosis_figures_and_its_configuration(
    folder: Path, touched: list[str]
) -> None:
    cli = pruned(*SMALL, "--run", "small")
    run_folder = folder / "lightning_logs" / "small"
    names = {path.name for path in run_folder.iterdir() if not path.name.startswith("events")}
    assert (
        names
        >= {"masks.safetensors", "diagnosis.csv", "diagnosis.json", "config.yaml", "metrics.csv"}
        | PICTURES
    )
    assert all((run_folder / name).stat().st_size > 5_000 for name in PICTURES)
    masks = Masks.load(run_folder / "masks.safetensors")
    assert masks.kept == 31_540 // 20
    network = cli.model.network
    assert all(not parameter[~mask].any() for parameter, mask in masks.parameters(network))
    with open(run_folder / "diagnosis.csv", newline="") as file:
        assert [int(row["kept"]) for row in csv.DictReader(file)] == [
            int(masks[name].sum()) for name in masks
        ]
    diagnosis = json.loads((run_folder / "diagnosis.json").read_text())
    assert (diagnosis["kept"], diagnosis["alive"]) == (masks.kept, True)
    with open(run_folder / "metrics.csv", newline="") as file:
        densities = [
            float(row["pruning/density"])
            for row in csv.DictReader(file)
            if row.get("pruning/density")
        ]
    assert densities == pytest.approx([0.05 ** (k / 5) for k in range(1, 6)], abs=1e-4)


def test_the_masks_equal_those_of_the_python_function(folder: Path, touched: list[str]) -> None:
    cli = pruned(*SMALL)
    torch.manual_seed(0)
    network = type(cli.model.network)(width=4)
    masks = prune(network, SynFlow(), density=0.05, rounds=5, input_shape=(1, 28, 28))
    saved = Masks.load(cli.run_folder / "masks.safetensors")  # type: ignore[operator]
    assert all(torch.equal(saved[name], masks[name]) for name in masks)


def test_prune_shows_a_progress_bar_over_the_rounds_and_prints_the_diagnosis(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = SMALL[: -len(QUIET)]
    with caplog.at_level("INFO"):
        command.prune(options)
    assert re.search(r"Pruning, SynFlow: .*\| [0-5]/5 \[", capsys.readouterr().err)
    assert any(
        line.startswith("all ") for record in caplog.records for line in record.message.splitlines()
    )


def test_the_printed_command_trains_from_the_masks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = pruned(*SMALL, "--seed_everything", "3").model.network
    (hint,) = [line for line in capsys.readouterr().out.splitlines() if "synflow_pl fit" in line]
    words = shlex.split(hint.partition("synflow_pl ")[2])
    cli = run([*words, "--trainer.limit_train_batches", "0"])
    masks = next(callback for callback in cli.callbacks if isinstance(callback, PruneAtInit)).masks
    # Before any training, the initialisation and the masks are those of the pruning.
    assert all(
        torch.equal(left, right)
        for left, right in zip(network.parameters(), cli.model.network.parameters(), strict=True)
    )
    assert masks is not None
    assert masks.kept == 31_540 // 20
    assert cli.run_folder == Path("lightning_logs/demo-synflow-density0.05-seed3")
    trained = run(
        [
            *words,
            "--trainer.max_epochs",
            "1",
            "--trainer.limit_train_batches",
            "2",
            "--trainer.limit_val_batches",
            "1",
        ]
    )
    assert trained.trainer.global_step == 2
    assert all(
        not parameter[~mask].any() for parameter, mask in masks.parameters(trained.model.network)
    )


def test_data_is_downloaded_for_a_pruner_that_scores_on_data(
    folder: Path, generated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synflow_pl.data import MNIST

    fetched: list[str] = []
    monkeypatch.setattr(MNIST, "prepare_data", lambda self: fetched.append("MNIST"))
    snip = pruned("-c", "mnist_fc", "-c", "pruners/snip", *CPU)
    assert fetched == ["MNIST"]
    assert snip.run_folder == Path("lightning_logs/mnist_fc-snip-density0.1-seed0-pruned")
    # With one round there is no figure over the rounds.
    assert {path.suffix for path in snip.run_folder.glob("layers_over_rounds*")} == set()


def test_fresh_batches_depend_on_the_seed_only_and_change_the_masks(
    folder: Path,
) -> None:
    force = [
        "-c",
        "demo",
        "--model.network.width",
        "4",
        "-c",
        "pruners/force",
        "--pruning.rounds",
        "4",
        *CPU,
    ]
    runs = {
        "first": [],
        "again": [],
        "same": ["--pruning.fresh_batches", "false"],
        "seed": ["--data.seed", "1"],
    }
    masks = {}
    for name, options in runs.items():
        pruned(*force, *options, "--run", name)
        masks[name] = Masks.load(folder / "lightning_logs" / name / "masks.safetensors")

    def equal(left: str, right: str) -> bool:
        return all(torch.equal(mask, masks[right][name]) for name, mask in masks[left].items())

    assert equal("first", "again")
    assert not equal("first", "same")
    assert not equal("first", "seed")


def test_a_disconnected_network_is_an_error_and_its_diagnosis_is_written(
    folder: Path, touched: list[str]
) -> None:
    status, line = refused(
        "-c", "mnist_fc", "-c", "pruners/magnitude", "--pruning.density", "0.01", *CPU
    )
    assert status == 1
    assert line == (
        "the network is dead: no path of kept weights leads from input to output at density "
        "0.01; it breaks at 'layers.1.weight', which has no weight left; try more rounds, a larger "
        "density, another scope (local), or on_collapse warn to train it anyway"
    )
    diagnosis = json.loads(
        (
            folder / "lightning_logs/mnist_fc-magnitude-density0.01-seed0-pruned/diagnosis.json"
        ).read_text()
    )
    assert (diagnosis["alive"], diagnosis["broken"]) == (False, "layers.1.weight")


def test_the_error_names_the_round_after_which_the_network_is_disconnected(
    folder: Path, touched: list[str]
) -> None:
    options = [
        "-c",
        "mnist_fc",
        "-c",
        "pruners/magnitude",
        "--pruning.density",
        "0.001",
        "--pruning.rounds",
        "10",
        *CPU,
    ]
    status, line = refused(*options, "--pruning.schedule", "exponential")
    assert status == 1
    match = re.search(r"since round (\d+), at density ([\d.e-]+); it breaks at", line)
    assert match
    index, density = int(match[1]), float(match[2])
    assert density == pytest.approx(0.001 ** (index / 10), rel=1e-2)
    # Magnitude pruning in several rounds keeps the same weights as in one. One round earlier a path
    # is left; in this round none.
    alive = [
        pruned(
            *options[:4],
            "--pruning.density",
            str(0.001 ** (k / 10)),
            "--pruning.on_collapse",
            "warn",
            *CPU,
        )
        for k in (index - 1, index)
    ]
    assert [command.pruning(cli.trainer).diagnosis.alive for cli in alive] == [True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("-c pruners/dense", "there is no pruner to prune by"),
        (
            "--trainer.accelerator cpu --trainer.devices 2",
            "prune runs on one device, not 2; add --trainer.devices 1",
        ),
        (
            "-c pruners/gradual",
            "GradualMagnitude prunes during a training, and nothing is trained here",
        ),
        ("-c pruners/rigl", "RigL prunes during a training, and nothing is trained here"),
        ("--pruning.at_epoch 2", "at_epoch: 2 is during a training"),
        (
            "--pruning.densty 0.1",
            "there is no option pruning.densty; did you mean pruning.density?",
        ),
        (
            "--compare snip",
            "compare: snip is not at least two different names of pruners, such as snip grasp",
        ),
        ("--compare", "compare: no name is not at least two"),
        ("--compare snip snip", "compare: snip snip is not at least two different names"),
        (
            "--compare snip grapsp",
            "no recipe 'pruners/grapsp': neither a file nor one of ours; did you mean "
            "'pruners/grasp'?",
        ),
        ("--compare snip dense", "compare: 'dense' prunes nothing; leave it out"),
        ("--compare snip gradual", "compare: 'gradual' prunes during a training"),
        ("--compare snip set", "compare: 'set' prunes during a training"),
        ("--compare snip grasp --pruning.at_epoch 1", "pruning.at_epoch cannot go with compare"),
    ],
)
def test_an_option_that_prune_does_not_allow_is_an_error_before_any_work(
    typed: str, message: str, folder: Path, touched: list[str]
) -> None:
    status, line = refused("-c", "mnist_fc", *typed.split())
    assert status == 2
    assert message in line
    assert touched == []
    assert not (folder / "lightning_logs").exists()


def test_the_help_names_the_options_of_pruning_and_compare() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as raised:
        command.prune(["--help"])
    assert raised.value.code == 0
    assert "--compare NAME NAME" in out.getvalue()
    assert "--pruning.density" in out.getvalue()


# -- side by side


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """List the prunings of a comparison after they have run."""
    prunings: list[Session] = []
    run_one = command._prune

    def record(*args: Any) -> Session:
        prunings.append(run_one(*args))
        return prunings[-1]

    monkeypatch.setattr(command, "_prune", record)
    return prunings


@pytest.mark.parametrize("seed", ["0", "true"])  # "true" draws a seed at random, once
def test_compared_pruners_start_with_the_same_weights(
    seed: str, folder: Path, touched: list[str], compared: list[Session]
) -> None:
    options = ["-c", "mnist_fc", *CPU, "--seed_everything", seed]
    command.prune([*options, "--compare", "magnitude", "random", "--pruning.density", "0.5"])
    networks = [cli.model.network for cli in compared]
    assert len(networks) == 2
    masks = [command.pruning(cli.trainer).masks for cli in compared]
    for network, mask in zip(networks[1:], masks[1:], strict=True):
        assert mask is not None
        assert masks[0] is not None
        assert {m.kept for m in masks if m is not None} == {59_700}
        for name in mask:
            both = mask[name] & masks[0][name]
            assert both.any()
            assert torch.equal(
                network.get_parameter(name)[both], networks[0].get_parameter(name)[both]
            )
    assert touched == []


def test_training_from_masks_is_named_after_the_run_of_the_masks(
    built: Callable[..., Session], folder: Path
) -> None:
    masks = Masks({"layers.1.weight": torch.ones(100, 784, dtype=torch.bool)})
    for place in ("some-pruned", "compared/snip", "elsewhere"):
        masks.save(folder / place / "masks.safetensors")
        if place != "elsewhere":
            (folder / place / "config.yaml").touch()
    names = [
        built(
            "fit", "-c", "mnist_fc", "--pruning.masks_path", f"{place}/masks.safetensors"
        ).run_folder.name  # type: ignore[union-attr]
        for place in ("some-pruned", "compared/snip", "elsewhere")
    ]
    assert names == [
        "some",
        "mnist_fc-masks_snip-density0.1-seed0",
        "mnist_fc-masks_masks-density0.1-seed0",
    ]


def test_a_comparison_writes_one_table_one_figure_and_a_run_for_each_pruner(
    folder: Path, touched: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command.prune(
        [
            "-c",
            "mnist_fc",
            "--pruning.density",
            "0.01",
            "--compare",
            "synflow",
            "magnitude",
            "--run",
            "both",
            *CPU,
        ]
    )
    both = folder / "lightning_logs" / "both"
    assert {path.name for path in both.iterdir()} == {
        "synflow",
        "magnitude",
        "comparison.csv",
        "comparison.png",
        "comparison.pdf",
    }
    rounds = json.loads((both / "synflow" / "diagnosis.json").read_text())
    assert (rounds["kept"], rounds["alive"]) == (1194, True)
    lines = {
        line.split("  ")[0]: line.split()[-2:]
        for line in capsys.readouterr().out.splitlines()
        if line
    }
    # In a comparison a disconnected network is a result, not an error.
    assert lines["alive"] == ["yes", "no"]
    assert lines["density"] == ["0.0100", "0.0100"]
    assert lines["effective density"][1] == "0.0000"
    assert lines["layers.1.weight"][1] == "0.0000"
    with open(both / "comparison.csv", newline="") as file:
        rows = {row[""]: row for row in csv.DictReader(file)}
    assert list(rows)[:6] == [f"layers.{index}.weight" for index in range(1, 12, 2)]
    assert list(rows)[6:] == [
        "density",
        "effective density",
        "compression",
        "alive",
        "FLOPs, dense",
        "FLOPs, sparse",
        "seconds",
    ]
    assert float(rows["effective density"]["synflow"]) == rounds["effective_density"]
    # Every weight of a fully connected network is used once, in a multiplication and an addition.
    assert int(rows["FLOPs, sparse"]["magnitude"]) == 2 * 1194


def test_compared_overlays_keep_their_rounds_and_typed_options_override_all_of_them(
    folder: Path, touched: list[str], compared: list[Session]
) -> None:
    command.prune(
        ["-c", "mnist_fc", "--pruning.density", "0.3", "--compare", "synflow", "random_erk", *CPU]
    )
    options = [cli.options.pruning for cli in compared]
    assert [(pruning.rounds, pruning.density) for pruning in options] == [(100, 0.3), (1, 0.3)]
    assert compared[0].run_folder == Path(
        "lightning_logs/mnist_fc-compare-density0.3-seed0-pruned/synflow"
    )
