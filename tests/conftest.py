"""Options, fixtures and functions that many tests share."""

from __future__ import annotations

import gc
import math
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.processes import limited_ranks

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slice",
        metavar="K/N",
        type=parse_slice,
        help="run the K-th of N slices of the selected tests (1 <= K <= N); each test is in one "
        "slice, by a fixed hash of its name",
    )


def parse_slice(text: str) -> tuple[int, int]:
    """Return ``(k, n)`` for ``"k/n"``.

    Raises:
        ValueError: Unless 1 <= k <= n.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--slice {text!r} must be K/N with 1 <= K <= N, for example 3/12")
    return int(index), int(count)


def in_slice(name: str, index: int, count: int) -> bool:
    """Return whether a test is in slice ``index`` of ``count``, where indices start at 1."""
    return zlib.crc32(name.encode()) % count == index - 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slice") is None:
        return
    index, count = config.getoption("--slice")
    chosen = [item for item in items if in_slice(item.nodeid, index, count)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def pytest_configure(config: pytest.Config) -> None:
    # The workers of pytest-xdist share the cores, so each gets its share of the threads.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    # A shell ignores SIGINT in what it starts in the background, and started commands inherit this.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _memory_of_large_networks_is_freed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect reference cycles after a slow test.

    Trainer and module refer to each other, and Python alone collects them so rarely that the
    networks of many tests fill the memory.
    """
    yield
    if request.node.get_closest_marker("slow"):
        gc.collect()


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """Destroy a process group that a test leaves behind.

    Forked ranks would use it in place of their own and wait forever.
    """
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _signals_are_answered_as_before() -> Iterator[None]:
    """Restore the signal handlers that a command installs.

    The following tests would inherit them, and so would forked workers, which a pool ends by
    SIGTERM and waits for.
    """
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Use one thread, as tests that fork ranks need, and limit the time of the ranks.

    Forked ranks do not have the threads that OpenMP keeps in this process, and would wait for them
    forever. Ranks that wait for each other fail the test instead of blocking it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # If the variable is not set, Lightning sets it, and it stays set after the test.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        with limited_ranks(600 if request.node.get_closest_marker("slow") else 60):
            yield
    finally:
        torch.set_num_threads(threads)


def fill_by_formula(network: nn.Module) -> nn.Module:
    """Fill a network with the weights of the golden masks, as their README defines them.

    Layer i is drawn with seed 1000 + i from He's normal distribution by fan-in; biases are zero.
    """
    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for index, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(1000 + index)
        scale = math.sqrt(2 / layer.weight[0].numel())
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * scale
        if layer.bias is not None:
            layer.bias.data.zero_()
    return network


def intersection_over_union(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return the intersection over union of the weights that two masks keep."""
    both = sum(int((left[name] & right[name]).sum()) for name in left)
    either = sum(int((left[name] | right[name]).sum()) for name in left)
    return both / either
