"""The densities of the rounds of a gradual pruning, and its state before it begins."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from pytorch_lightning import Trainer

from synflow_pl.pruners import GradualMagnitude
from synflow_pl.pruning_options import PruningOptions
from synflow_pl.training.gradual_pruning import GradualPruning, density_after


@pytest.mark.parametrize("target", [{"density": 0.2}, {"num_kept": 20}])
def test_a_linear_schedule_removes_equally_many_weights_in_each_round(target: Any) -> None:
    options = PruningOptions(rounds=4, schedule="linear", **target)
    densities = [density_after(options, GradualMagnitude(), due, 100) for due in range(1, 5)]
    assert densities == [Fraction(4, 5), Fraction(3, 5), Fraction(2, 5), Fraction(1, 5)]


def test_rounds_and_schedule_are_the_pruners_own_by_default() -> None:
    pruner = GradualMagnitude()
    options = PruningOptions(density=0.5)
    explicit = PruningOptions(density=0.5, rounds=pruner.rounds, schedule=pruner.schedule)
    assert density_after(options, pruner, 1, 100) == density_after(explicit, pruner, 1, 100)
    assert density_after(options, pruner, pruner.rounds, 100) == Fraction(1, 2)


def test_no_round_is_due_before_the_pruning_begins() -> None:
    gradual = GradualPruning()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert gradual.due(trainer, rounds=4) == gradual.done == 0
    assert not gradual.unfinished(rounds=4)
