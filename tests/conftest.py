"""What many tests share: small networks whose numbers can be worked out, and where the shared folder lies."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.processes import limited_ranks

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """One that a test leaves behind would be taken for their own by forked ranks, which then wait for ever."""
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _signals_are_answered_as_before() -> Iterator[None]:
    """A command sets what ends it for the rest of its process. Here the tests that follow would inherit that, and forked workers too,
    which a pool ends by SIGTERM and waits for.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """For ranks that are forked: they do not have the threads that OpenMP keeps in this process, and would wait for them for ever.
    Ranks that wait for each other fail the test instead of holding it up.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or Lightning sets it for good
    try:
        with limited_ranks(600 if request.node.get_closest_marker("slow") else 60):
            yield
    finally:
        torch.set_num_threads(threads)


def fill_by_formula(network: nn.Module) -> nn.Module:
    """Weights as the golden masks' README gives them: layer i from the seed 1000 + i, He normal by fan-in, zero biases."""
    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for index, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(1000 + index)
        scale = math.sqrt(2 / layer.weight[0].numel())
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * scale
        if layer.bias is not None:
            layer.bias.data.zero_()
    return network


def intersection_over_union(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    both = sum(int((left[name] & right[name]).sum()) for name in left)
    either = sum(int((left[name] | right[name]).sum()) for name in left)
    return both / either
