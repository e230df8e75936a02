"""Reports over run folders that are written by hand here."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from synflow_pl.cli.recipes import overlays
from synflow_pl.cli.report import report as command
from synflow_pl.runs.report_writer import report
from synflow_pl.runs.run_files import SkippedRun
from synflow_pl.runs.run_record import read_run
from synflow_pl.runs.run_search import find_runs
from synflow_pl.runs.sweep_grid import NARROWER

Epochs = Sequence[tuple[float, float]]
OVERLAYS = overlays()


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes a second or two, in tests whose name does not contain "figures"."""
    if "figures" not in request.node.name:
        monkeypatch.setattr("synflow_pl.runs.report_writer._figures", lambda *_: [])


def a_run(
    root: Path,
    pruner: str = "synflow",
    density: float = 0.1,
    seed: int = 0,
    *,
    final: float | None = 0.9,
    of: int | None = None,
    epochs: Epochs = ((0.8, 0.7), (0.9, 0.85), (0.9, 0.95)),
    name: str | None = None,
    connected: bool = True,
    data: str = "MNIST",
    network: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write the folder of a run as ``fit`` and ``test`` leave it.

    ``epochs`` has the validation and test accuracy of each epoch, ``of`` the number of epochs that
    the run was to have, ``final`` the accuracy of the final test.
    """
    folder = root / "lightning_logs" / (name or f"{pruner}-{density}-{seed}")
    folder.mkdir(parents=True)
    its = {
        "pruner": None,
        "rounds": None,
        **(OVERLAYS[pruner]["pruning"]),
        "density": density,
        "sanity": None,
        "masks_path": None,
    }
    config = {
        "seed_everything": seed,
        "trainer": {"max_epochs": len(epochs) if of is None else of, "default_root_dir": str(root)},
        "model": {
            "network": network
            or {"class_path": "synflow_pl.networks.FC", "init_args": {"width": 100, "depth": 6}}
        },
        "data": {
            "class_path": f"synflow_pl.data.{data}",
            "init_args": {"data_dir": str(root), **options},
        },
        "pruning": its,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "epoch",
                "val/accuracy",
                "test_each_epoch/accuracy",
                "test/accuracy",
                "train/loss",
                "step",
            ]
        )
        for epoch, (validation, test) in enumerate(epochs):
            writer.writerow([epoch, validation, test, "", "", 10 * epoch + 9])
            writer.writerow([epoch, "", "", "", 0.1, 10 * epoch + 9])
        if final is not None:
            writer.writerow([len(epochs), "", "", final])
    if pruner != "dense":
        layers = [
            {"name": "a", "total": 900, "kept": int(900 * density)},
            {"name": "b", "total": 100, "kept": int(100 * density)},
        ]
        whole = {
            "density": density,
            "effective_density": density / 2 if connected else 0.0,
            "flops": 2000,
            "alive": connected,
        }
        (folder / "diagnosis.json").write_text(
            json.dumps({**whole, "sparse_flops": int(2000 * density), "layers": layers})
        )
    return folder


def change(folder: Path, part: str, options: dict[str, Any]) -> None:
    """Replace options in one part of a run's configuration."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(
        yaml.safe_dump({**config, part: {**config[part], **options}})
    )


def reported(root: Path, **options: Any) -> list[dict[str, str]]:
    report([root], root / "report", OVERLAYS, **{"reference": "synflow", "paper": False, **options})
    with open(root / "report" / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


# -- numbers


def test_the_accuracy_at_the_best_validation_epoch_is_not_the_best_on_test(tmp_path: Path) -> None:
    # Validation is best at epochs 1 and 2 (0.9); the first counts, with 0.85 on test. The best
    # epoch on test is 2.
    run = read_run(a_run(tmp_path, final=0.94), OVERLAYS)
    assert (
        run.accuracies.final,
        run.accuracies.at_best_validation,
        run.accuracies.best_on_test,
    ) == (0.94, 0.85, 0.95)


def test_a_run_that_validated_on_the_test_set_has_no_accuracy_at_best_validation(
    tmp_path: Path,
) -> None:
    run = read_run(a_run(tmp_path, validate_on_test=True), OVERLAYS)
    assert (run.accuracies.at_best_validation, run.accuracies.best_on_test) == (None, 0.9)


def test_the_last_row_counts_of_an_epoch_that_was_logged_twice(tmp_path: Path) -> None:
    folder = a_run(tmp_path, epochs=[(0.5, 0.5)])
    with open(folder / "metrics.csv", "a") as file:
        file.write("0,0.6,0.4,\n")
    assert read_run(folder, OVERLAYS).accuracies.best_on_test == 0.4


def test_the_table_has_mean_deviation_and_interval_over_seeds(tmp_path: Path) -> None:
    for seed, final in enumerate((0.90, 0.91, 0.92)):
        a_run(tmp_path, seed=seed, final=final)
    (row,) = reported(tmp_path)
    assert (row["setting"], row["pruner"], row["seeds"]) == ("MNIST, FC", "synflow", "3")
    assert float(row["final_mean"]) == pytest.approx(0.91)
    assert float(row["final_deviation"]) == pytest.approx(0.01)
    assert float(row["final_high95"]) - 0.91 == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert float(row["at_best_validation_mean"]) == pytest.approx(0.85)
    assert float(row["effective_density"]) == pytest.approx(0.05)
    assert float(row["flops"]) == pytest.approx(200)


def test_pruners_are_compared_seed_by_seed(tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate([(0.9, 0.8), (0.7, 0.6)]):
        a_run(tmp_path, "synflow", seed=seed, final=ours)
        a_run(tmp_path, "snip", seed=seed, final=theirs)
    a_run(tmp_path, "snip", seed=9, final=0.1)
    rows = {row["pruner"]: row for row in reported(tmp_path)}
    assert rows["synflow"]["final_minus_synflow_mean"] == ""
    assert float(rows["snip"]["final_minus_synflow_mean"]) == pytest.approx(-0.1)
    assert float(rows["snip"]["final_minus_synflow_deviation"]) == pytest.approx(0, abs=1e-12)
    assert rows["snip"]["pairs"] == "2"


def test_one_accuracy_that_was_not_measured_leaves_the_cell_empty(tmp_path: Path) -> None:
    a_run(tmp_path, seed=0)
    folder = a_run(tmp_path, seed=1)
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,val/accuracy,test/accuracy\n2,9,0.1,0.9,\n0,0,,,0.8\n"
    )
    (row,) = reported(tmp_path)
    assert (row["seeds"], row["at_best_validation_mean"], row["best_on_test_mean"]) == ("2", "", "")
    assert float(row["final_mean"]) == pytest.approx(0.85)


@pytest.mark.parametrize(("limit", "known"), [(1, False), (0.5, False), (1.0, True), (None, True)])
def test_the_accuracy_on_a_part_of_the_test_set_is_not_reported(
    limit: float | None, known: bool, tmp_path: Path
) -> None:
    # Lightning's limit 1 is one batch, and 1.0 is all batches.
    folder = a_run(tmp_path)
    a_run(tmp_path, "snip")
    change(folder, "trainer", {"limit_test_batches": limit})
    rows = {row["pruner"]: row for row in reported(tmp_path)}
    assert [
        bool(rows["synflow"][f"{which}_mean"])
        for which in ("final", "at_best_validation", "best_on_test")
    ] == [known] * 3
    assert bool(rows["snip"]["final_minus_synflow_mean"]) == known
    assert rows["synflow"]["effective_density"] == "0.05"


def test_a_disconnected_network_is_reported(tmp_path: Path) -> None:
    a_run(tmp_path, "magnitude", final=0.1135, connected=False)
    (row,) = reported(tmp_path)
    assert (row["dead"], row["final_mean"]) == ("1", "0.1135")


# -- what is compared with what


def test_pruners_are_named_by_the_overlay_that_agrees_in_most_options(tmp_path: Path) -> None:
    names = ["random", "random_erk", "snip", "snip_iterative", "grasp", "grasp_inverted", "dense"]
    assert [read_run(a_run(tmp_path, name), OVERLAYS).pruner for name in names] == names


@pytest.mark.parametrize("pruner", ["synflow", "snip", "grasp", "force"])
def test_a_pruner_is_its_overlay_whether_its_default_number_of_rounds_is_given_or_not(
    pruner: str, tmp_path: Path
) -> None:
    a_run(tmp_path, pruner, seed=0)
    change(a_run(tmp_path, pruner, seed=1), "pruning", {"rounds": None})
    (row,) = reported(tmp_path, reference=pruner)
    assert (row["pruner"], row["seeds"]) == (pruner, "2")


@pytest.mark.parametrize(("rounds", "kinds"), [(100, 1), ("auto", 2)])
def test_the_margin_distinguishes_runs_of_automatic_rounds_only(
    rounds: int | str, kinds: int, tmp_path: Path
) -> None:
    # Runs that recorded no margin had 0.99.
    for seed, margin in enumerate(({}, {"margin": 0.99}, {"margin": 0.5})):
        change(a_run(tmp_path, seed=seed), "pruning", {"rounds": rounds, **margin})
    rows = reported(tmp_path)
    assert sorted(int(row["seeds"]) for row in rows) == ([3] if kinds == 1 else [1, 2])


def test_runs_of_another_recipe_are_labelled_by_the_options_that_differ(tmp_path: Path) -> None:
    a_run(tmp_path, seed=0, name="small", batch_size=64)
    a_run(tmp_path, seed=0, name="large", batch_size=128)
    a_run(tmp_path, seed=0, data="CIFAR10", batch_size=128)
    assert [row["setting"] for row in reported(tmp_path)] == [
        "CIFAR10, FC",
        "MNIST, FC, batch_size=128",
        "MNIST, FC, batch_size=64",
    ]


def test_a_pruner_is_labelled_by_the_options_that_differ_within_its_setting(
    tmp_path: Path,
) -> None:
    for data, compact in (("CIFAR10", (True,)), ("MNIST", (True, False))):
        for value in compact:
            run = a_run(tmp_path, data=data, name=f"{data}-{value}")
            change(run, "pruning", {"compact": value})
    assert [(row["setting"], row["pruner"]) for row in reported(tmp_path)] == [
        ("CIFAR10, FC", "synflow"),
        ("MNIST, FC", "synflow, compact=False"),
        ("MNIST, FC", "synflow, compact=True"),
    ]


def test_the_data_folder_and_testing_each_epoch_do_not_make_another_setting(
    tmp_path: Path,
) -> None:
    a_run(tmp_path, seed=0, num_workers=4)
    a_run(tmp_path, seed=1, num_workers=0, test_each_epoch=True)
    (row,) = reported(tmp_path)
    assert row["seeds"] == "2"


def test_a_run_that_repeats_another_in_everything_is_left_out_with_the_reason(
    tmp_path: Path,
) -> None:
    a_run(tmp_path, final=0.9)
    a_run(tmp_path, final=0.8, name="synflow-0.1-0-again")
    result = report([tmp_path], tmp_path / "report", OVERLAYS, reference="synflow", paper=False)
    assert [len(cell.runs) for cell in result.cells] == [1]
    assert list(result.left_out.values()) == [
        f"it repeats {tmp_path}/lightning_logs/synflow-0.1-0 in everything"
    ]


@pytest.mark.parametrize(
    "options",
    [{"density": None, "num_kept": 100}, {"density": 0.5, "masks_path": "masks.safetensors"}],
)
def test_with_num_kept_or_given_masks_the_density_is_the_one_reached(
    options: dict[str, Any], tmp_path: Path
) -> None:
    for density in (0.1, 0.01):
        change(a_run(tmp_path, "synflow", density), "pruning", options)
    assert [row["density"] for row in reported(tmp_path)] == ["0.1", "0.01"]


def test_only_the_last_level_of_a_multi_shot_pruning_is_reported_and_the_others_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in (0, 1, 2):
        folder = a_run(
            tmp_path, "magnitude", name=f"m-level{level}of2", final=0.9 if level == 2 else None
        )
        (folder / "level.json").write_text(
            json.dumps({"level": level, "levels": 2, "rewind": 0, "density": 0.1})
        )
    (row,) = reported(tmp_path)
    assert (row["pruner"], row["seeds"]) == ("magnitude, 2 levels", "1")
    command([str(tmp_path), "--out", str(tmp_path / "again"), "--reference", "magnitude, 2 levels"])
    said = capsys.readouterr().out
    assert "2 levels of multi-shot pruning are not reported" in said
    assert "1 runs reported, 0 left out" in said


def test_a_narrower_network_is_reported_at_its_own_size_in_the_setting_of_the_full_one(
    tmp_path: Path,
) -> None:
    a_run(tmp_path)
    folder = a_run(
        tmp_path,
        "dense",
        1.0,
        network={"class_path": "synflow_pl.networks.FC", "init_args": {"width": 14, "depth": 6}},
    )
    sizes = {"weights": 119, "flops": 238, "whole_weights": 1000, "whole_flops": 2000}
    about = {
        "like": "parameters",
        "density": 0.1,
        "argument": "width",
        "width": 14,
        "whole_width": 100,
        **sizes,
    }
    (folder / NARROWER).write_text(json.dumps(about))
    rows = reported(tmp_path)
    assert [(row["setting"], row["pruner"]) for row in rows] == [
        ("MNIST, FC", "narrower, as many weights"),
        ("MNIST, FC", "synflow"),
    ]
    assert (rows[0]["density_kept"], rows[0]["flops"]) == ("0.119", "238.0")


# -- what cannot be reported


def test_damaged_unfinished_and_foreign_runs_are_listed_and_the_others_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path, final=0.9)
    broken = a_run(tmp_path, "snip", name="broken")
    (broken / "config.yaml").write_text("model: [unclosed")
    a_run(tmp_path, "snip", name="unfinished", final=None)
    foreign = tmp_path / "lightning_logs" / "version_0"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("model: {class_path: theirs.Model}\n")
    (tmp_path / "lightning_logs" / "empty").mkdir()
    failed = a_run(tmp_path, "grasp", name="failed")
    (failed / "failed.txt").write_text("FloatingPointError: no number\n")
    command(["lightning_logs"])
    said = capsys.readouterr().out
    assert "| synflow | 0.1 | 0.05 | 1 | 90.00 |" in said
    assert "left out: lightning_logs/broken: its config.yaml cannot be read: while parsing" in said
    assert (
        "left out: lightning_logs/unfinished: it is not tested yet: synflow_pl test --ckpt_path"
        " lightning_logs/unfinished" in said
    )
    assert (
        "left out: lightning_logs/version_0: it is not a run of synflow_pl: its config.yaml has no"
        " model.network" in said
    )
    assert "left out: lightning_logs/empty: there is no config.yaml in it" in said
    assert "left out: lightning_logs/failed: it failed: FloatingPointError: no number" in said
    assert "1 runs reported, 5 left out" in said


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("diagnosis.json", "[]", "it is broken: there is no density in its diagnosis.json"),
        (
            "diagnosis.json",
            '{"density": 0.1}',
            "it is broken: there is no effective_density in its diagnosis.json",
        ),
        ("level.json", "{}", "it is broken: there is no level in its level.json"),
        ("level.json", '{"level": "one", "levels": 2, "rewind": 0}', "it is broken: TypeError"),
        ("narrower.json", "{}", "it is broken: KeyError: 'like'"),
        ("failed.txt", b"full\xff", "it failed: full\N{REPLACEMENT CHARACTER}"),
        (
            "model",
            {"network": "FC"},
            "it is broken: model.network names no class (class_path) in its config.yaml",
        ),
        (
            "model",
            {"network": {"width": 4}},
            "it is broken: model.network names no class (class_path) in its config.yaml",
        ),
        (
            "pruning",
            {"pruner": "SynFlow"},
            "it is broken: pruning.pruner names no class (class_path) in its config.yaml",
        ),
        (
            "pruning",
            {"density": "foo"},
            "it is broken: ValueError: could not convert string to float: 'foo'",
        ),
        ("trainer", {"max_epochs": "all"}, "it is broken: TypeError"),
    ],
)
def test_a_run_with_any_damage_is_left_out_and_the_others_are_reported(
    file: str, content: Any, why: str, tmp_path: Path
) -> None:
    a_run(tmp_path, "snip")
    broken = a_run(tmp_path, "synflow")
    if isinstance(content, dict):
        change(broken, file, content)
    else:
        (broken / file).write_bytes(content.encode() if isinstance(content, str) else content)
    result = report([tmp_path], tmp_path / "report", OVERLAYS, reference="synflow", paper=False)
    assert [cell.pruner for cell in result.cells] == ["snip"]
    assert result.left_out[broken].startswith(why)


def test_a_data_module_with_only_default_arguments_may_list_none(tmp_path: Path) -> None:
    change(a_run(tmp_path), "data", {"init_args": None})
    assert reported(tmp_path)[0]["pruner"] == "synflow"


def test_a_run_tested_before_its_training_ended_is_unfinished_with_the_command_to_resume(
    tmp_path: Path,
) -> None:
    folder = a_run(tmp_path, of=5)
    with pytest.raises(SkippedRun) as why:
        read_run(folder, OVERLAYS)
    assert str(why.value) == (
        "it is unfinished: stopped after 3 epochs; resume it with synflow_pl fit -c"
        f" {folder}/config.yaml --ckpt_path {folder}"
    )


@pytest.mark.parametrize("text", ["epoch,test/accuracy\n0,high\n", "epoch,val/accuracy\n,0.5\n"])
def test_metrics_that_are_not_numbers_are_a_reason_to_leave_a_run_out(
    text: str, tmp_path: Path
) -> None:
    folder = a_run(tmp_path)
    (folder / "metrics.csv").write_text(text)
    with pytest.raises(SkippedRun, match=r"its metrics.csv cannot be read"):
        read_run(folder, OVERLAYS)


def test_nothing_to_report_is_an_error_of_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path, final=None)
    with pytest.raises(SystemExit) as left:
        command([str(tmp_path)])
    assert left.value.code == 2
    assert "there is no finished run in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command([str(tmp_path / "nowhere")])
    assert "there is no folder" in capsys.readouterr().err


def test_a_folder_without_runs_and_a_file_as_output_are_errors_of_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(SystemExit):
        command([str(tmp_path)])
    assert "there are no runs in" in capsys.readouterr().err
    a_run(tmp_path)
    with pytest.raises(SystemExit) as left:
        command([str(tmp_path), "--out", str(tmp_path / "afile")])
    assert left.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_runs_are_found_in_a_run_in_lightning_logs_and_in_the_folder_of_a_sweep(
    tmp_path: Path,
) -> None:
    run = a_run(tmp_path / "sweeps" / "one")
    for path in (run, run.parent, tmp_path / "sweeps" / "one", tmp_path):
        assert find_runs([path]) == [run]
    assert find_runs([run, tmp_path]) == [run]


# -- files


def test_the_figures_and_three_tables_are_written(tmp_path: Path) -> None:
    a_run(tmp_path, "dense", 1.0)
    for density in (0.1, 0.01):
        a_run(tmp_path, "synflow", density)
        a_run(tmp_path, "magnitude", density, connected=False)
    reported(tmp_path, paper=True)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    expected = {"table.csv", "table.md", "table.tex", "grid.md"}
    expected |= {
        f"accuracy_against_{x}-MNIST-FC.png" for x in ("compression", "effective_density", "flops")
    }
    expected |= {"accuracies-MNIST-FC.png", "accuracies-MNIST-FC.pdf"}
    assert expected <= names
    assert "layers_against_compression-MNIST-FC.png" in names


def test_the_grid_has_a_row_for_each_pruner_and_marks_disconnected_networks(tmp_path: Path) -> None:
    a_run(tmp_path, "synflow", 0.1, final=0.5)
    a_run(tmp_path, "magnitude", 0.1, final=0.1, connected=False)
    a_run(tmp_path, "synflow", 0.01, final=0.4)
    reported(tmp_path)
    lines = (tmp_path / "report" / "grid.md").read_text().splitlines()
    assert lines[2:] == [
        "| pruner | 0.1 | 0.01 |",
        "| --- | --- | --- |",
        "| magnitude | 10.00 † |  |",
        "| synflow | 50.00 | 40.00 |",
    ]


def test_the_grid_marks_disconnected_networks_without_a_known_accuracy(tmp_path: Path) -> None:
    folder = a_run(tmp_path, "magnitude", connected=False)
    change(folder, "trainer", {"limit_test_batches": 1})
    reported(tmp_path)
    assert (tmp_path / "report" / "grid.md").read_text().splitlines()[-1] == "| magnitude | † |"


def test_special_characters_of_latex_are_escaped(tmp_path: Path) -> None:
    a_run(tmp_path, "grasp_inverted")
    reported(tmp_path)
    text = (tmp_path / "report" / "table.tex").read_text()
    assert r"grasp\_inverted & 0.1" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_the_published_curve_stands_beside_a_run_of_its_network(tmp_path: Path) -> None:
    from synflow_pl.runs.published import published

    network = {
        "class_path": "synflow_pl.networks.VGG",
        "init_args": {"depth": 16, "batch_norm": True},
    }
    run = read_run(a_run(tmp_path, network=network, data="CIFAR10"), OVERLAYS)
    curves = {curve.pruner: curve for curve in published(run)}
    assert set(curves) == {"random", "magnitude", "snip", "grasp_inverted", "synflow"}
    at = dict(zip(curves["synflow"].compression, curves["synflow"].mean, strict=True))
    assert [at[10.0], at[100.0], at[1000.0]] == pytest.approx([0.9326, 0.9008, 0.8039])
    assert published(read_run(a_run(tmp_path, "snip"), OVERLAYS)) == []


@pytest.mark.parametrize(
    ("depth", "epochs", "said"),
    [
        (16, ((0.8, 0.7),), None),
        (13, ((0.8, 0.7),), "No published curve is of the network and data of these runs"),
        (16, (), "The published curves stand alone: no run here was tested after each epoch"),
    ],
)
def test_where_there_are_no_curves_of_the_paper_or_none_of_ours_the_figures_say_so(
    depth: int, epochs: Epochs, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {
        "class_path": "synflow_pl.networks.VGG",
        "init_args": {"depth": depth, "batch_norm": True},
    }
    a_run(tmp_path, network=network, data="CIFAR10", epochs=epochs)
    command([str(tmp_path), "--out", str(tmp_path / "report"), "--paper"])
    printed = capsys.readouterr().out
    assert ("ublished curve" in printed) == (said is not None)
    assert (said or "") in printed
    assert (tmp_path / "report" / f"published-CIFAR10-VGG_{depth}.png").exists() == (depth == 16)


def test_the_report_starts_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['synflow_pl', 'report', '--help']\nfrom synflow_pl.__main__"
        " import main\n"
    )
    code += "try: main()\nexcept SystemExit: pass\n"
    code += (
        "import synflow_pl.runs.report_writer\nassert not"
        " {'torch', 'pytorch_lightning', 'numpy', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
