"""Sweeps: the runs of a grid, their progress, and the lock that keeps two processes off one run."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

import pytest

from synflow_pl.cli.sweep_commands import evaluation_command, fit_options, training_command
from synflow_pl.cli.sweep_locks import check_existing_runs, lock_run
from synflow_pl.runs.sweep_grid import FAILED, Sweep, Task, accuracy


def names(**grid: object) -> list[str]:
    return [task.name for task in Sweep(**grid).tasks()]  # type: ignore[arg-type]


@pytest.fixture
def task() -> Task:
    return Sweep(["mnist_fc"], ["snip"], [0.1], options={"trainer.max_epochs": 5}).tasks()[0]


def metrics(folder: Path, task: Task, text: str) -> Path:
    run = folder / "lightning_logs" / task.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("trainer: {max_epochs: 2, max_steps: -1}\n")
    (run / "metrics.csv").write_text(text)
    return run


def test_a_sweep_has_every_pruner_and_density_of_one_seed_before_the_next_seed() -> None:
    assert names(
        recipes=["mnist_fc"], pruners=["snip", "synflow"], densities=[0.01, 0.1], seeds=[0, 1]
    ) == [
        f"mnist_fc-{pruner}-density{density}-seed{seed}"
        for seed in (0, 1)
        for density in (0.1, 0.01)
        for pruner in ("snip", "synflow")
    ]


def test_the_dense_network_is_one_run_for_all_densities_and_levels() -> None:
    grid = {"recipes": ["mnist_fc"], "densities": [1.0, 0.1, 0.01], "levels": [0, 2]}
    assert names(pruners=["dense"], **grid) == ["mnist_fc-dense-density1-seed0"]
    assert names(pruners=["snip", "dense"], **grid).count("mnist_fc-dense-density1-seed0") == 1
    assert len(names(pruners=["snip", "dense"], **grid)) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("recipes", "pruners", "both"),
    [
        (["mnist_fc", "mine/mnist_fc.yaml"], ["snip", "dense"], "mnist_fc and mine/mnist_fc.yaml"),
        (["mnist_fc"], ["snip", "mine/snip.yaml"], "pruners/snip and mine/snip.yaml"),
    ],
)
def test_two_files_whose_runs_would_have_the_same_name_are_refused(
    recipes: list[str], pruners: list[str], both: str
) -> None:
    with pytest.raises(
        ValueError,
        match=f"^{both} would both be called mnist_fc-snip-density0.1-seed0;"
        " rename one of the two files$",
    ):
        names(recipes=recipes, pruners=pruners, densities=[0.1])


def test_a_run_is_an_ordinary_fit_and_test_that_also_trains_a_disconnected_network(
    task: Task,
) -> None:
    assert training_command(task, Path("/s")) == [
        *(
            "fit",
            "-c",
            "mnist_fc",
            "-c",
            "pruners/snip",
            "--pruning.density",
            "0.1",
            "--pruning.on_collapse",
            "warn",
        ),
        *("--seed_everything", "0", "--trainer.max_epochs", "5"),
        *("--run", "mnist_fc-snip-density0.1-seed0", "--trainer.default_root_dir", "/s"),
    ]
    assert training_command(task, Path("/s"), resume=True)[-2:] == [
        "--ckpt_path",
        "/s/lightning_logs/mnist_fc-snip-density0.1-seed0",
    ]
    assert evaluation_command(task, Path("/s")) == [
        "test",
        "--ckpt_path",
        "/s/lightning_logs/mnist_fc-snip-density0.1-seed0",
    ]


def test_the_last_level_of_a_multi_shot_run_has_the_result() -> None:
    (shot,) = Sweep(["mnist_fc"], ["magnitude"], [0.1], levels=[2]).tasks()
    assert training_command(shot, Path("/s"))[:3] == ["multishot", "--levels", "2"]
    assert shot.result == "mnist_fc-magnitude_2levels-density0.1-seed0-level2of2"


def test_narrower_networks_are_dense_and_get_their_width_later() -> None:
    like = [
        task.like
        for task in Sweep(
            ["mnist_fc"], ["narrower_parameters", "narrower_flops", "snip"], [0.1]
        ).tasks()
    ]
    assert like == ["parameters", "flops", None]


def test_further_grids_follow_in_their_order_with_the_options_in_which_they_differ() -> None:
    sweep = Sweep(
        ["mnist_fc"],
        ["synflow"],
        [0.1],
        options={"trainer.max_epochs": 1},
        then=[{"densities": [0.5]}, {"recipes": ["demo"], "pruners": ["dense", "snip"]}],
    )
    tasks = sweep.tasks()
    assert [task.name for task in tasks] == [
        "mnist_fc-synflow-density0.1-seed0",
        "mnist_fc-synflow-density0.5-seed0",
        "demo-dense-density1-seed0",
        "demo-snip-density0.1-seed0",
    ]
    assert {task.settings["trainer.max_epochs"] for task in tasks} == {1}
    for part, message in (
        ({"network": "VGG"}, "then: network is not an option of a grid; choose from recipes"),
        ({"densities": [2]}, "densities: 2 is not in (0, 1]"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Sweep(["mnist_fc"], ["synflow"], [0.1], then=[part])


def test_a_sweep_may_vary_another_budget_than_the_density() -> None:
    tasks = Sweep(["mnist_fc"], ["dense", "synflow"], [1, 0.25], budget="flops").tasks()
    assert [task.name for task in tasks] == [
        "mnist_fc-dense-density1-seed0",
        "mnist_fc-synflow-flops0.25-seed0",
    ]
    options = fit_options(tasks[1])
    assert options[options.index("--pruning.density") + 1] == "null"
    assert options[options.index("--pruning.flops") + 1] == "0.25"
    with pytest.raises(ValueError, match="narrower_parameters has no network for budget 'flops'"):
        Sweep(["mnist_fc"], ["narrower_parameters"], [0.25], budget="flops")
    with pytest.raises(ValueError, match=r"--pruning\.flops cannot be the same for every run"):
        Sweep(["mnist_fc"], ["snip"], [0.25], budget="flops").tasks(["--pruning.flops=0.1"])
    with pytest.raises(ValueError, match="budget: 'flops' cannot be reached in levels"):
        Sweep(["mnist_fc"], ["snip"], [0.25], levels=[2], budget="flops")


def test_options_are_typed_as_they_would_be_on_the_command_line() -> None:
    (task,) = Sweep(
        ["demo"], ["snip"], [0.1], options={"a": [1, 2], "b": True, "c": "word", "d": None}
    ).tasks(["--e", "5"])
    assert fit_options(task)[-10:] == [
        "--a",
        "[1, 2]",
        "--b",
        "true",
        "--c",
        "word",
        "--d",
        "null",
        "--e",
        "5",
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"densities": [0.1, 2.0]},
            r"densities: 2.0 is not in \(0, 1\]; compression 10\^2 is density 0.01",
        ),
        ({"densities": [0.0]}, "densities: 0.0 is not in"),
        ({"densities": []}, "densities: there is none"),
        ({"pruners": ["snip", "snip"]}, "pruners: 'snip' is given twice"),
        ({"seeds": [0, -1]}, "seeds: -1 must be at least 0"),
    ],
)
def test_an_invalid_option_of_the_grid_is_named_in_the_error(
    grid: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sweep(**{"recipes": ["mnist_fc"], "pruners": ["snip"], "densities": [0.1], **grid})  # type: ignore[arg-type]


def test_a_run_is_finished_when_it_has_been_tested_after_its_last_epoch(
    task: Task, tmp_path: Path
) -> None:
    assert accuracy(tmp_path, task) is None
    run = metrics(tmp_path, task, "")
    # The command `test` logs at epoch 0 and step 0.
    half, tested = "epoch,step,train/loss,test/accuracy\n0,9,0.5,\n", "0,0,,0.75\n"
    for text, finished in (
        (half, None),
        (half + tested, None),
        (half + tested + "1,19,0.4,\n", None),
        (half + "1,19,0.4,\n" + tested, 0.75),
    ):
        (run / "metrics.csv").write_text(text)
        assert accuracy(tmp_path, task) == finished
    (run / FAILED).write_text("why")
    assert accuracy(tmp_path, task) is None


@pytest.mark.parametrize("text", ["", "\0\0", "epoch,test/accuracy\n0,zero\n"])
def test_a_run_whose_metrics_are_damaged_is_not_finished(
    text: str, task: Task, tmp_path: Path
) -> None:
    metrics(tmp_path, task, text)
    assert accuracy(tmp_path, task) is None


def test_a_run_can_be_locked_by_one_process_at_a_time(task: Task, tmp_path: Path) -> None:
    with lock_run(tmp_path, task) as first:
        assert first
        with lock_run(tmp_path, task) as second:
            assert not second
    with lock_run(tmp_path, task) as again:
        assert again


def test_a_run_with_equal_options_is_accepted_and_one_with_other_options_refused(
    task: Task, tmp_path: Path
) -> None:
    check_existing_runs(tmp_path, [task])
    with lock_run(tmp_path, task):
        metrics(tmp_path, task, "")
    check_existing_runs(tmp_path, [task])
    other = Sweep(["mnist_fc"], ["snip"], [0.1], options={"trainer.max_epochs": 6}).tasks()
    with pytest.raises(
        ValueError,
        match=r"was made with '.*max_epochs 5', not with '.*max_epochs 6'; give the same options",
    ):
        check_existing_runs(tmp_path, other)


def test_a_run_that_was_not_made_by_a_sweep_is_refused(task: Task, tmp_path: Path) -> None:
    metrics(tmp_path, task, "")
    with pytest.raises(
        ValueError, match="was not made by a sweep; move it away, or give another --folder"
    ):
        check_existing_runs(tmp_path, [task])


def test_a_file_system_that_cannot_lock_is_an_error(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"), lock_run(tmp_path, task):
        pass
