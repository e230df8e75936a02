"""Operators of one class have a rule alike, and random numbers are never constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from synflow_pl.compaction.channel_groups import has_rule
from synflow_pl.compaction.constant_propagation import interpret
from synflow_pl.flow import trace
from synflow_pl.graph import operators
from synflow_pl.graph.trace import Operation


def operation(name: str) -> Operation:
    packet = getattr(torch.ops.aten, name)
    return Operation(getattr(packet, packet.overloads()[0]), (), {}, ())


@pytest.mark.parametrize(
    "name",
    sorted(
        operators.BATCH_NORMS
        | operators.POOLS
        | operators.RESIZES
        | operators.BICUBIC_RESIZES
        | operators.PADS
        | operators.SPLITS
        | operators.SOFTMAXES
        | operators.RESHAPES
        | operators.CREATED_LIKE
        | operators.CREATED_NEW
    ),
)
def test_every_operator_of_a_class_has_a_rule(name: str) -> None:
    assert has_rule(operation(name))


@pytest.mark.parametrize("name", sorted(operators.TRAINING_BATCH_NORMS))
def test_batch_norms_with_the_statistics_of_the_batch_have_no_rule(name: str) -> None:
    assert not has_rule(operation(name))


RANDOM: dict[str, Callable[[], Tensor]] = {
    "randint": lambda: torch.randint(5, (3,), dtype=torch.float32),
    "randint_like": lambda: torch.randint_like(torch.ones(3), 5),
    "normal": lambda: torch.normal(torch.zeros(3), 1.0),
    "poisson": lambda: torch.poisson(torch.ones(3)),
    "cauchy": lambda: torch.ones(3).cauchy_(),
    "geometric": lambda: torch.ones(3).geometric_(0.5),
    "log_normal": lambda: torch.ones(3).log_normal_(),
    "new_empty_strided": lambda: torch.ones(3).new_empty_strided((3,), (1,)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_and_uninitialised_memory_are_not_constants(name: str) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + RANDOM[name]()

    outputs: dict[str, Tensor] = {}
    interpret(
        trace(Noisy(), (torch.ones(1, 2),)),
        {},
        lambda *_: None,
        lambda operation, output: outputs.update({operation.name: output}),
    )
    assert bool(outputs[name].isnan().all())
