"""Tests that every sweep in configs/sweeps is a grid of existing recipes and pruners."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from synflow_pl.cli.command import parse_fit
from synflow_pl.cli.multishot import planned
from synflow_pl.cli.recipes import find_recipe, recipe_folder
from synflow_pl.cli.sweep_commands import fit_options, training_command
from synflow_pl.masks import Masks
from synflow_pl.networks import FC
from synflow_pl.pruners import Magnitude
from synflow_pl.pruning import prune
from synflow_pl.runs.sweep_grid import Sweep

FILES = sorted((recipe_folder() / "sweeps").glob("*.yaml"))


def grid(path: Path) -> Sweep:
    return Sweep(**yaml.safe_load(path.read_text()))


def test_there_are_sweeps_for_the_published_figures_the_table_and_the_controls() -> None:
    names = {path.stem for path in FILES}
    assert {
        "figure1",
        "figure2",
        "figure5a",
        "figure6_cifar10",
        "mnist",
        "table",
        "controls",
    } <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_starts_with_a_comment_and_names_existing_recipes_and_overlays(
    path: Path,
) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    for task in grid(path).tasks():
        for name in (task.recipe, task.overlay):
            find_recipe(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_options_of_a_sweep_are_accepted_by_fit(path: Path) -> None:
    task = next(task for task in grid(path).tasks() if task.density < 1 and not task.like)
    pruning = parse_fit(fit_options(task)).options.pruning
    assert pruning[task.budget] == task.density
    assert pruning.on_collapse == "warn"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_of_each_kind_of_run_has_the_settings_of_the_grid(
    path: Path, tmp_path: Path
) -> None:
    for task in {
        (task.recipe, task.overlay, task.levels): task for task in grid(path).tasks()
    }.values():
        words = training_command(task, tmp_path)
        plan = planned(words[1:])[1] if task.levels else parse_fit(words[1:])
        assert words[0] == ("multishot" if task.levels else "fit")
        assert (plan.options.run, plan.options.trainer.default_root_dir) == (
            task.name,
            str(tmp_path),
        )
        pruned = task.density < 1 and not task.like
        assert (
            plan.options.pruning.pruner is None,
            plan.options.pruning[task.budget] if pruned else None,
        ) == (
            not pruned,
            task.density if pruned else None,
        )


def test_the_mnist_sweep_has_the_five_classic_pruners_six_densities_and_three_seeds() -> None:
    sweep = grid(recipe_folder() / "sweeps" / "mnist.yaml")
    assert {"random", "magnitude", "snip", "grasp", "synflow"} <= set(sweep.pruners)
    assert (len(sweep.densities), len(sweep.seeds)) == (6, 3)


def test_magnitude_pruning_in_a_hundred_rounds_keeps_the_same_weights_as_in_one() -> None:
    network = FC(width=10)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    masks: list[Masks] = []
    for rounds in (1, 100):
        network.load_state_dict(state)
        masks.append(
            prune(network, Magnitude(), density=0.3, rounds=rounds, input_shape=(1, 28, 28))
        )
    assert all(bool((masks[0][name] == masks[1][name]).all()) for name in masks[0])
