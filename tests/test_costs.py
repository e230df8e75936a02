"""What things cost, counted and not timed: a change that makes an algorithm do more work fails here
on any machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from synflow_pl import Classifier, PruneAtInit, prune
from synflow_pl.data import Digits
from synflow_pl.data.loader import Loader
from synflow_pl.networks import Conv, ResNet
from synflow_pl.order_statistics import smallest_mask, smallest_of_many
from synflow_pl.pruners import Pruner, PruningState, Random, SynFlow

# What makes the host wait for a device: a number is asked for, or the size of something.
SYNCS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")


class Counted(TorchDispatchMode):
    """How often each operation runs, and how many numbers those of a kind write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.written = 0

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = target._schema.name.split("::")[1].rstrip("_")
        self.calls[name] += 1
        result = target(*args, **(kwargs or {}))
        if (
            isinstance(result, Tensor)
            and result.is_floating_point()
            and name in ("clone", "abs", "sign", "mul", "index_select")
        ):
            self.written += result.numel()
        return result


def costs(rounds: int, density: float = 0.01) -> Counted:
    torch.manual_seed(0)
    network = ResNet(20)
    with Counted() as counted:
        prune(network, SynFlow(), density=density, rounds=rounds, input_shape=(3, 32, 32))
    return counted


def test_a_round_is_one_pass_forward_and_one_back_through_each_layer() -> None:
    few, more = costs(3), costs(8)
    # 19 convolutions of 3x3 and two shortcuts of 1x1; the first has no input to give a gradient to,
    # but a weight.
    assert more.calls["convolution"] - few.calls["convolution"] == 5 * 21
    assert more.calls["convolution_backward"] - few.calls["convolution_backward"] == 5 * 21


def test_weights_are_copied_once_and_a_round_writes_each_score_once() -> None:
    parameters = sum(parameter.numel() for parameter in ResNet(20).parameters())
    # At density 0.9 nothing dies in blocks, so a round costs the same throughout. What else is
    # written are signals.
    few, more = costs(3, 0.9), costs(8, 0.9)
    assert (more.written - few.written) / 5 < 3.5 * parameters
    assert few.calls["clone"] == more.calls["clone"]


def test_late_rounds_write_less_than_early_ones() -> None:
    assert (costs(40).written - costs(20, 0.1).written) / 20 < (
        costs(12, 0.9).written - costs(2, 0.9).written
    ) / 10


def test_a_round_asks_a_device_for_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synflow_pl.selection._answers_at_once", lambda device: False)
    few, more = costs(3), costs(8)
    assert sum(more.calls[name] - few.calls[name] for name in SYNCS) == 5


def test_what_waits_for_no_device_chooses_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = ResNet(20).double()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = prune(network, SynFlow(), density=0.01, rounds=30, input_shape=(3, 32, 32))
    network.load_state_dict(state)
    monkeypatch.setattr("synflow_pl.selection._answers_at_once", lambda device: False)
    found = prune(network, SynFlow(), density=0.01, rounds=30, input_shape=(3, 32, 32))
    assert all(torch.equal(mask, found[name]) for name, mask in expected.items())


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_of_several_tensors_the_marked_go_lowest_first_and_of_equals_the_later(count: int) -> None:
    parts = [torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, -3.0, 5.0])]
    among = [torch.tensor([True, False, True]), torch.tensor([True, True, False, True])]
    # In the order they go: the last 1, the middle one, the first; then 2, then 5. The 0 and the -3
    # take no part.
    order = [(1, 1), (1, 0), (0, 2), (0, 0), (1, 3)]
    gone = sorted(order[:count])
    found = list(smallest_of_many(parts, among, 5, count))
    assert [(part, int(at)) for part, places in enumerate(found) for at in places] == gone
    with Counted() as counted:
        marks = smallest_mask(parts, among, count)
    assert sum(counted.calls[name] for name in SYNCS) == 0
    assert [(part, int(at)) for part, places in enumerate(marks) for at in places.nonzero()] == gone


def test_pruning_without_data_makes_no_loader_and_starts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[str] = []
    iterate = Loader.__iter__
    monkeypatch.setattr(
        Loader, "__iter__", lambda loader: (starts.append("epoch"), iterate(loader))[1]
    )

    class Counting(Digits):
        def train_dataloader(self) -> Loader:
            starts.append("loader")
            return super().train_dataloader()

    def fit(callback: PruneAtInit) -> list[str]:
        starts.clear()
        trainer = Trainer(
            max_epochs=2, limit_train_batches=2, limit_val_batches=0, logger=False, enable_checkpointing=False, callbacks=[callback],
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(Classifier(Conv()), datamodule=Counting())
        return list(starts)

    dense = fit(PruneAtInit(None))
    assert dense.count("loader") == 1
    assert fit(PruneAtInit(SynFlow(), density=0.5, rounds=2)) == dense


def test_a_pruner_is_asked_for_its_scores_once_a_round() -> None:
    class Asked(Random):
        times = 0

        def score(self, subject: PruningState) -> Any:
            Asked.times += 1
            return super().score(subject)

    pruner: Pruner = Asked()
    prune(Conv(), pruner, density=0.1, rounds=7)
    assert Asked.times == 7


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_told_without_torch_numpy_or_a_parser(option: str) -> None:
    program = (
        f"import sys; sys.argv[1:] = [{option!r}]; from synflow_pl.__main__ import main; main();"
        "print(sorted({'torch', 'numpy', 'pytorch_lightning', 'jsonargparse', 'argparse'} & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert told.splitlines()[-1] == "[]"
