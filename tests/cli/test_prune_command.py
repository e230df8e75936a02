"""The prune command: no training, no data but for those who score on it, and everything about the
masks left in the run.
"""

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

import pytest
import torch
from conftest import QUIET

from synflow_pl import Masks, prune
from synflow_pl.__main__ import main
from synflow_pl.cli import prune as command
from synflow_pl.cli.main import CLI, resolved, run
from synflow_pl.pruners import SynFlow
from synflow_pl.training import PruneAtInit

CPU = ["--trainer.accelerator", "cpu", *QUIET]
# Of width 4 instead of 32, conv has 9 * 4 + 9 * 4 * 4 + 4 * 784 * 10 = 31,540 weights.
SMALL = ["-c", "demo", "--model.network.width", "4", "--pruning.rounds", "5", *CPU]
PICTURES = {
    f"{name}.{kind}"
    for name in ("density_per_layer", "layers_over_rounds")
    for kind in ("png", "pdf")
}


def pruned(*args: str) -> command._Prune:
    return command._Prune(resolved(["prune", *args]))


def refused(*args: str) -> tuple[int, str]:
    """Exit status of a command, and the one sentence that it ends with."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        command.prune(list(args))
    (line,) = [
        line for line in err.getvalue().splitlines() if line.startswith("synflow_pl: error: ")
    ]
    assert isinstance(left.value.code, int)
    return left.value.code, line.removeprefix("synflow_pl: error: ")


def test_a_pruner_without_data_touches_none(
    folder: Path, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["python", "prune", "-c", "mnist_fc", "--pruning.rounds", "5", *CPU]
    )
    main()
    assert touched == []
    assert {path.name for path in folder.iterdir()} == {"lightning_logs"}  # nothing was downloaded
    assert (
        Masks.load("lightning_logs/mnist_fc-synflow-density0.1-seed0-pruned/masks.safetensors").kept
        == 11_940
    )


def test_the_run_holds_masks_table_pictures_and_its_configuration(
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
    told = json.loads((run_folder / "diagnosis.json").read_text())
    assert (told["kept"], told["alive"]) == (masks.kept, True)
    with open(run_folder / "metrics.csv", newline="") as file:
        densities = [
            float(row["pruning/density"])
            for row in csv.DictReader(file)
            if row.get("pruning/density")
        ]
    assert densities == pytest.approx([0.05 ** (k / 5) for k in range(1, 6)], abs=1e-4)


def test_the_masks_are_those_of_the_function(folder: Path, touched: list[str]) -> None:
    cli = pruned(*SMALL)
    torch.manual_seed(0)
    network = type(cli.model.network)(width=4)
    masks = prune(network, SynFlow(), density=0.05, rounds=5, input_shape=(1, 28, 28))
    found = Masks.load(cli.run_folder / "masks.safetensors")  # type: ignore[operator]
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_there_is_a_progress_bar_over_the_rounds_and_the_table_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = SMALL[: -len(QUIET)]
    with caplog.at_level("INFO"):
        command.prune(options)
    assert re.search(r"Pruning, SynFlow: .*\| [0-5]/5 \[", capsys.readouterr().err)
    assert any(
        line.startswith("all ") for record in caplog.records for line in record.message.splitlines()
    )


def test_a_training_goes_on_from_the_masks_by_the_command_that_is_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = pruned(*SMALL, "--seed_everything", "3").model.network
    (hint,) = [line for line in capsys.readouterr().out.splitlines() if "synflow_pl fit" in line]
    words = shlex.split(hint.partition("synflow_pl ")[2])
    cli = run([*words, "--trainer.limit_train_batches", "0"])
    masks = next(callback for callback in cli.callbacks if isinstance(callback, PruneAtInit)).masks
    # The same initialisation under the same masks, before anything is trained.
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


def test_a_pruner_that_scores_on_data_gets_them(
    folder: Path, generated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synflow_pl.data import MNIST

    fetched: list[str] = []
    monkeypatch.setattr(MNIST, "prepare_data", lambda self: fetched.append("MNIST"))
    snip = pruned("-c", "mnist_fc", "-c", "pruners/snip", *CPU)
    assert fetched == ["MNIST"]
    assert snip.run_folder == Path("lightning_logs/mnist_fc-snip-density0.1-seed0-pruned")
    # In one round there is no course of the rounds to be drawn.
    assert {path.suffix for path in snip.run_folder.glob("layers_over_rounds*")} == set()


def test_fresh_batches_of_an_overlay_are_drawn_by_the_seed_and_change_the_masks(
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


def test_a_dead_network_is_a_sentence_and_leaves_its_table_behind(
    folder: Path, touched: list[str]
) -> None:
    status, line = refused(
        "-c", "mnist_fc", "-c", "pruners/magnitude", "--pruning.density", "0.01", *CPU
    )
    assert status == 1
    assert line == (
        "the network is dead: no path of living weights leads from input to output at density "
        "0.01; it breaks at 'layers.1.weight',"
        " which has no weight left; try more rounds, a larger density, another scope (local), or "
        "on_collapse warn to train it anyway"
    )
    told = json.loads(
        (
            folder / "lightning_logs/mnist_fc-magnitude-density0.01-seed0-pruned/diagnosis.json"
        ).read_text()
    )
    assert (told["alive"], told["broken"]) == (False, "layers.1.weight")


def test_of_many_rounds_the_one_is_named_in_which_the_network_died(
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
    found = re.search(r"since round (\d+), at density ([\d.e-]+); it breaks at", line)
    assert found
    index, density = int(found[1]), float(found[2])
    assert density == pytest.approx(0.001 ** (index / 10), rel=1e-2)
    # By magnitude a round of ten leaves what one cut would: one round earlier a path is left, and
    # then none.
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
    ("typed", "said"),
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
        ("--compare snip grasp --pruning.at_epoch 1", "pruning.at_epoch cannot go with compare"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    typed: str, said: str, folder: Path, touched: list[str]
) -> None:
    status, line = refused("-c", "mnist_fc", *typed.split())
    assert status == 2
    assert said in line
    assert touched == []
    assert not (folder / "lightning_logs").exists()


def test_the_help_says_what_it_does_and_how_to_compare() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
        command.prune(["--help"])
    assert left.value.code == 0
    assert "--compare NAME NAME" in out.getvalue()
    assert "--pruning.density" in out.getvalue()


# -- side by side


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> list[command._Prune]:
    """Each pruning of a comparison, when it is over."""
    over: list[command._Prune] = []
    monkeypatch.setattr(command._Prune, "after_prune", lambda self: over.append(self))
    return over


@pytest.mark.parametrize("seed", ["0", "true"])  # a seed that is drawn is drawn once
def test_those_compared_begin_with_the_same_weights(
    seed: str, folder: Path, touched: list[str], members: list[command._Prune]
) -> None:
    options = ["-c", "mnist_fc", *CPU, "--seed_everything", seed]
    command.prune([*options, "--compare", "magnitude", "random", "--pruning.density", "0.5"])
    networks = [cli.model.network for cli in members]
    assert len(networks) == 2
    masks = [command.pruning(cli.trainer).masks for cli in members]
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


def test_a_training_from_masks_bears_the_name_of_the_run_that_has_them(
    built: Callable[..., CLI], folder: Path
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


def test_a_comparison_is_one_table_one_picture_and_a_run_for_each(
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
    assert lines["alive"] == ["yes", "no"]  # a dead network is a finding here, not an error
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
    assert (
        int(rows["FLOPs, sparse"]["magnitude"]) == 2 * 1194
    )  # every weight of a fully connected network is used once


def test_what_is_compared_has_its_own_rounds_and_the_options_typed_go_over_all(
    folder: Path, touched: list[str], members: list[command._Prune]
) -> None:
    command.prune(
        ["-c", "mnist_fc", "--pruning.density", "0.3", "--compare", "synflow", "random_erk", *CPU]
    )
    options = [cli.options.pruning for cli in members]
    assert [(pruning.rounds, pruning.density) for pruning in options] == [(100, 0.3), (1, 0.3)]
    assert members[0].run_folder == Path(
        "lightning_logs/mnist_fc-compare-density0.3-seed0-pruned/synflow"
    )
