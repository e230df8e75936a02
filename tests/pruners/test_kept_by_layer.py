"""Weights kept in each layer by the pruners since 2021: values of our own, to notice changes.

They were made by printing ``kept_by_layer`` of each pruner (torch 2.14, one CPU thread), after the
scores had been compared with those of the authors' code (docs/reference/pruners.md). Network and
images are given by formulas and in float64, so that they do not depend on the machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import (
    PX,
    FisherOBD,
    GRASPIt,
    HutchinsonOBD,
    LogSynFlow,
    ProsPr,
    Pruner,
    Random,
)
from tests.conftest import fill_by_formula

TRAIN = {"train_mode": True}
KEPT: list[tuple[Pruner, dict[str, Any], list[int]]] = [
    (ProsPr(), TRAIN, [53, 62, 57, 53, 80, 14, 75, 44, 29, 37]),
    (ProsPr(first_order=True), TRAIN, [19, 25, 35, 64, 94, 20, 65, 52, 43, 87]),
    (ProsPr(detach_first=True), TRAIN, [50, 47, 59, 45, 77, 17, 77, 51, 31, 50]),
    (PX(), {"rounds": 10}, [66, 69, 64, 69, 76, 20, 0, 0, 70, 70]),
    (LogSynFlow(), {"rounds": 10}, [43, 41, 44, 69, 59, 19, 51, 28, 73, 77]),
    (GRASPIt(), {"rounds": 2} | TRAIN, [63, 67, 43, 41, 60, 4, 68, 101, 11, 46]),
    (FisherOBD(), {}, [72, 65, 50, 85, 60, 18, 36, 15, 46, 57]),
    (HutchinsonOBD(seed=0), {}, [36, 42, 31, 53, 73, 13, 94, 81, 30, 51]),
    (Random(seed=0, quota="uniform_plus"), {}, [108, 11, 11, 22, 44, 2, 88, 176, 10, 32]),
]


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return three batches of images (5, 3, 8, 8) and labels."""
    numbers = torch.arange(3 * 5 * 3 * 8 * 8, dtype=torch.float64)
    images = ((numbers * 0.7).sin() + (numbers * numbers % 101) / 50 - 1).view(3, 5, 3, 8, 8)
    labels = torch.arange(15).mul(7).remainder(10).view(3, 5)
    return list(zip(images, labels, strict=True))


def kept_by_layer(pruner: Pruner, options: dict[str, Any]) -> list[int]:
    """Return how many weights of each layer a pruner keeps of ResNet-8 at density 0.1."""
    network = fill_by_formula(ResNet(8, width=4)).double()
    masks = prune(network, pruner, density=0.1, input_shape=(3, 8, 8), batches=batches(), **options)
    return [int(masks[name].sum()) for name in masks.weights]


@pytest.mark.parametrize(
    ("pruner", "options", "expected"), KEPT, ids=lambda value: getattr(value, "name", "")
)
def test_each_layer_keeps_as_many_weights_as_when_the_pruner_was_written(
    pruner: Pruner, options: dict[str, Any], expected: list[int]
) -> None:
    assert kept_by_layer(pruner, options) == expected
